"""The promises of a turn: begin, undo, append, finish, leases. On every server supported."""

import asyncio
from collections import Counter

import pytest

from gateway.conversations import OUTPUT_ITEMS, Append, Attached, Begun, Lease, Standing, item_id
from gateway.conversations.store import TITLE
from gateway.errors import (
    ConversationLocked,
    IdempotencyConflict,
    NotFound,
    PreviousResponseNotFound,
    VersionConflict,
)
from tests.contract.conftest import Desk, dump, said, texts
from tests.servers import RedisServer


async def test_a_turn_is_one_group_of_input_then_one_of_output(desk: Desk) -> None:
    conversation = await desk.conversation()
    before = await desk.store.get(desk.owner, conversation)
    begin, begun = await desk.begins("one", conversation=conversation, input=[said("one"), said("two")])
    running = await desk.store.get(desk.owner, conversation)
    assert running.running == begin.turn
    assert running.version == before.version + 1
    output = await desk.store.finish(desk.answers(begin, "three"))

    after = await desk.store.get(desk.owner, conversation)
    items = await desk.store.history(desk.owner, conversation, None)
    assert texts(items) == ["one", "two", "three"]
    assert output is not None
    assert [item.id for item in items] == [item.id for item in [*begun.input, *output]]
    assert (after.version, after.running) == (before.version + 2, None)


async def test_output_takes_the_numbers_reserved_at_begin_whatever_branches_do(desk: Desk) -> None:
    conversation = await desk.conversation()
    first = await desk.turn("1", "2", conversation=conversation)
    begin, begun = await desk.begins("3", conversation=conversation)
    await desk.turn("x", "y", previous=first)  # the same shelf
    output = await desk.store.finish(desk.answers(begin, "4"))
    assert output is not None
    assert [item.id for item in output] == [item_id(output[0].body, begun.shelf, begun.first_output)]
    stored = await desk.store.response(desk.owner, begin.turn)
    assert (stored.shelf, stored.first_output) == (begun.shelf, begun.first_output)


async def test_more_output_than_reserved_is_refused(desk: Desk) -> None:
    begin, _ = await desk.begins("?")
    with pytest.raises(ValueError, match="at most"):
        await desk.store.finish(desk.answers(begin, "", output=[said("!")] * (OUTPUT_ITEMS + 1)))


async def test_of_32_at_once_one_wins_and_the_others_are_told_who(desk: Desk) -> None:
    conversation = await desk.conversation()
    begins = [desk.asks(f"{n}", conversation=conversation) for n in range(32)]
    outcomes = await asyncio.gather(*map(desk.store.begin, begins), return_exceptions=True)
    assert Counter(type(o) for o in outcomes) == {Begun: 1, ConversationLocked: 31}
    winner = next(b.turn for b, o in zip(begins, outcomes, strict=True) if isinstance(o, Begun))
    refusals = [o.details for o in outcomes if isinstance(o, ConversationLocked)]
    assert refusals == [{"version": 2, "running": winner}] * 31
    assert len(await desk.store.history(desk.owner, conversation, None)) == 1


async def test_another_version_than_expected_is_a_conflict_that_names_it(desk: Desk) -> None:
    conversation = await desk.conversation()
    await desk.turn("1", "2", conversation=conversation, expected_version=1)
    with pytest.raises(VersionConflict) as refused:
        await desk.store.begin(desk.asks("3", conversation=conversation, expected_version=1))
    assert refused.value.details == {"version": 3}


async def test_unknown_conversation_and_unknown_previous_are_told_apart(desk: Desk) -> None:
    for id in ("conv_none", "conv:with:colons", ""):
        with pytest.raises(NotFound):
            await desk.store.begin(desk.asks("?", conversation=id) if id else desk.asks("?", conversation="\n"))
    for id in ("resp_none", "resp:with:colons"):
        with pytest.raises(PreviousResponseNotFound):
            await desk.store.begin(desk.asks("?", previous=id))


async def test_a_previous_response_still_being_written_is_locked(desk: Desk) -> None:
    begin, _ = await desk.begins("?")
    with pytest.raises(ConversationLocked) as refused:
        await desk.store.begin(desk.asks("more", previous=begin.turn))
    assert refused.value.details == {"running": begin.turn}


async def test_the_same_key_attaches_while_running_and_after(desk: Desk) -> None:
    conversation = await desk.conversation()
    assert not await desk.store.has_come(desk.owner, "k é")
    first, _ = await desk.begins("1", conversation=conversation, key="k é", digest="d 1")
    assert await desk.store.has_come(desk.owner, "k é") and not await desk.store.has_come("u_other", "k é")
    again = desk.asks("1", conversation=conversation, key="k é", digest="d 1")
    assert await desk.store.begin(again) == Attached(first.turn)
    await desk.store.finish(desk.answers(first, "2"))
    assert await desk.store.begin(again) == Attached(first.turn)
    with pytest.raises(IdempotencyConflict):
        await desk.store.begin(desk.asks("other", conversation=conversation, key="k é", digest="d 2"))
    assert texts(await desk.store.history(desk.owner, conversation, None)) == ["1", "2"]


async def test_a_post_known_to_be_a_first_one_is_remembered_instead_of_what_came_before(desk: Desk) -> None:
    first, _ = await desk.begins("1", key="k", digest="d")
    second, begun = await desk.begins("1", key="k", digest="d", attach=False)
    assert await desk.store.begin(desk.asks("1", key="k", digest="d")) == Attached(second.turn)
    await desk.store.undo(desk.owner, first.turn, 1)  # forgets its own memory only
    assert await desk.store.begin(desk.asks("1", key="k", digest="d")) == Attached(second.turn)
    await desk.store.undo(desk.owner, second.turn, begun.fence)
    await desk.begins("1", key="k", digest="d")


async def test_of_32_posts_with_one_key_one_begins_and_the_others_attach(desk: Desk) -> None:
    conversation = await desk.conversation()
    posts = [desk.asks("1", conversation=conversation, key="k", digest="d") for _ in range(32)]
    outcomes = await asyncio.gather(*map(desk.store.begin, posts))
    winner = next(p.turn for p, o in zip(posts, outcomes, strict=True) if isinstance(o, Begun))
    assert outcomes.count(Attached(winner)) == 31


async def test_the_same_turn_begun_again_gets_the_same_answer(desk: Desk) -> None:
    conversation = await desk.conversation()
    begin, begun = await desk.begins("1", conversation=conversation, key="k", digest="d")
    assert await desk.store.begin(begin) == begun
    assert texts(await desk.store.history(desk.owner, conversation, None)) == ["1"]


@pytest.mark.parametrize("title", [None, "Hello"])
@pytest.mark.parametrize("kind", ["conversation", "branched", "alone", "previous"])
async def test_undo_leaves_everything_as_if_never_posted(
    desk: Desk, redis_server: RedisServer, title: str | None, kind: str
) -> None:
    conversation = await desk.conversation(project="x")
    turn = await desk.turn("1", "2", conversation=conversation)
    links = {"conversation": {"conversation": conversation}, "previous": {"previous": turn}}
    if kind == "branched":
        branch = await desk.store.create(desk.owner, {"deskmate:branch_of": turn}, [])
        links["branched"] = {"conversation": branch.id}
    before = dump(redis_server)
    begin, begun = await desk.begins("3", key="k", digest="d", title=title, **links.get(kind, {}))
    await desk.store.append([Append(desk.owner, begin.turn, begun.fence, 1, [b"a"])])
    assert dump(redis_server) != before
    await desk.store.undo(desk.owner, begin.turn, begun.fence)
    assert dump(redis_server) == before
    await desk.store.undo(desk.owner, begin.turn, begun.fence)
    assert dump(redis_server) == before


async def test_undo_keeps_a_rename_that_came_in_between(desk: Desk) -> None:
    conversation = await desk.conversation()
    begin, begun = await desk.begins("1", conversation=conversation, title="Auto")
    renamed = await desk.store.update(desk.owner, conversation, {TITLE: "Mine"}, None)
    await desk.store.undo(desk.owner, begin.turn, begun.fence)
    after = await desk.store.get(desk.owner, conversation)
    assert (after.metadata, after.version, after.running) == ({TITLE: "Mine"}, renamed.version + 1, None)


async def test_undo_with_another_fence_or_after_the_end_does_nothing(desk: Desk, redis_server: RedisServer) -> None:
    begin, begun = await desk.begins("1")
    before = dump(redis_server)
    await desk.store.undo(desk.owner, begin.turn, begun.fence + 1)
    assert dump(redis_server) == before
    await desk.store.finish(desk.answers(begin, "2"))
    before = dump(redis_server)
    await desk.store.undo(desk.owner, begin.turn, begun.fence)
    assert dump(redis_server) == before


async def test_the_title_is_set_by_the_first_turn_only_when_there_is_none(desk: Desk) -> None:
    bare, titled = await desk.conversation(), await desk.conversation(**{TITLE: "Given"})
    for conversation in (bare, titled):
        await desk.turn("1", "2", conversation=conversation, title="First 问题")
        await desk.turn("3", "4", conversation=conversation, title="Second")
    assert (await desk.store.get(desk.owner, bare)).metadata[TITLE] == "First 问题"
    assert (await desk.store.get(desk.owner, titled)).metadata[TITLE] == "Given"


async def test_appends_of_many_turns_are_fenced_one_by_one_and_safe_to_repeat(desk: Desk) -> None:
    (one, _), (two, _) = await desk.begins("1"), await desk.begins("2")
    mine = Append(desk.owner, one.turn, 1, 1, [b"a", b"b"])
    stale = Append(desk.owner, two.turn, 9, 1, [b"x"])
    unknown = Append(desk.owner, "resp_none", 1, 1, [b"x"])
    assert await desk.store.append([mine, stale, unknown]) == [True, False, False]
    overlapping = Append(desk.owner, one.turn, 1, 2, [b"b", b"\x00\xff"])
    assert await desk.store.append([mine, overlapping]) == [True, True]
    assert await desk.store.log(desk.owner, one.turn) == [b"a", b"b", b"\x00\xff"]
    assert await desk.store.log(desk.owner, one.turn, after=1) == [b"b", b"\x00\xff"]
    assert await desk.store.log(desk.owner, one.turn, after=3) == []
    assert await desk.store.log(desk.owner, two.turn) == []


async def test_the_log_of_a_finished_turn_has_its_ttl_also_when_its_last_entry_comes_after(
    desk: Desk, redis_server: RedisServer
) -> None:
    begin, _ = await desk.begins("1")
    await desk.store.finish(desk.answers(begin, "2"))
    assert await desk.store.append([Append(desk.owner, begin.turn, 1, 1, [b"end"])]) == [True]
    assert 3500 < int(redis_server.admin("TTL", f"dm:stream:{desk.owner}:{begin.turn}")) <= 3600  # type: ignore[call-overload]


async def test_finish_again_gives_the_same_items_and_charges_once(desk: Desk, redis_server: RedisServer) -> None:
    begin, _ = await desk.begins("1", conversation=await desk.conversation())
    finish = desk.answers(begin, "2")
    first = await desk.store.finish(finish)
    before = dump(redis_server)
    assert await desk.store.finish(finish) == first
    assert await desk.store.finish(desk.answers(begin, "2", status="cancelled")) is None
    assert await desk.store.finish(desk.answers(begin, "2", fence=2)) is None
    assert dump(redis_server) == before
    [usage] = [value for key, value in before.items() if key.startswith("dm:usage:")]
    assert usage == {b"prompt": b"7", b"completion": b"3", b"requests": b"1"}


async def test_a_finish_without_output_unlocks_and_the_next_turn_goes_on(desk: Desk) -> None:
    conversation = await desk.conversation()
    begin, _ = await desk.begins("1", conversation=conversation)
    assert await desk.store.finish(desk.answers(begin, "", output=[], status="failed")) == []
    await desk.turn("2", "3", conversation=conversation)
    assert texts(await desk.store.history(desk.owner, conversation, None)) == ["1", "2", "3"]
    assert texts(await desk.store.history(desk.owner, None, begin.turn)) == ["1"]


async def test_who_adopts_an_expired_turn_fences_the_former_holder(desk: Desk) -> None:
    begin, begun = await desk.begins("1", lease_seconds=0.0)
    lease = Lease(desk.owner, begin.turn)
    assert await desk.store.expired() == [lease]
    fences = await asyncio.gather(*(desk.store.adopt(lease, f"gateway-{n}", 60) for n in range(8)))
    assert sorted(fences, key=str) == [2] + [None] * 7
    assert await desk.store.expired() == []
    assert await desk.store.append([Append(desk.owner, begin.turn, begun.fence, 1, [b"late"])]) == [False]
    assert await desk.store.finish(desk.answers(begin, "late", begun.fence)) is None
    await desk.store.undo(desk.owner, begin.turn, begun.fence)
    assert await desk.store.finish(desk.answers(begin, "good", 2)) is not None
    assert texts((await desk.store.response(desk.owner, begin.turn)).output) == ["good"]


async def test_the_first_entry_of_the_log_is_written_with_the_turn_and_taken_back_with_it(
    desk: Desk, redis_server: RedisServer
) -> None:
    begin, begun = await desk.begins("1", entry=b"asked")
    assert await desk.store.log(desk.owner, begin.turn) == [b"asked"]
    assert await desk.store.append([Append(desk.owner, begin.turn, 1, 2, [b"said"])]) == [Standing.OURS]
    await desk.store.undo(desk.owner, begin.turn, begun.fence)
    assert not [key for key in dump(redis_server) if key.startswith("dm:stream:")]


async def test_what_comes_after_an_entry_is_told_with_the_end_once_there_is_one(desk: Desk) -> None:
    begin, _ = await desk.begins("1", entry=b"a")
    await desk.store.append([Append(desk.owner, begin.turn, 1, 2, [b"b", b"c"])])
    assert await desk.store.tail(desk.owner, begin.turn, 1) == ([b"b", b"c"], None)
    assert await desk.store.tail(desk.owner, begin.turn, 3) == ([], None)
    await desk.store.finish(desk.answers(begin, "2"))
    assert await desk.store.tail(desk.owner, begin.turn, 2) == ([b"c"], b'{"r":1}')
    for stranger, turn in ((desk.owner, "resp_none"), ("u_bob", begin.turn)):
        with pytest.raises(NotFound):
            await desk.store.tail(stranger, turn, 0)


async def test_who_asks_for_the_end_of_a_turn_is_heard_by_whoever_runs_it(desk: Desk) -> None:
    begin, _ = await desk.begins("1")
    mine, lease = Append(desk.owner, begin.turn, 1, 1, [b"a"]), Lease(desk.owner, begin.turn)
    await desk.store.ask_to_stop("u_bob", begin.turn)
    assert await desk.store.renew([lease], "gateway-1", 60) == [Standing.OURS]
    await desk.store.ask_to_stop(desk.owner, begin.turn)
    assert await desk.store.append([mine]) == [Standing.STOP]
    assert await desk.store.renew([lease], "gateway-1", 60) == [Standing.STOP]
    assert await desk.store.renew([lease], "gateway-2", 60) == [Standing.LOST]
    await desk.store.finish(desk.answers(begin, "2", status="cancelled"))
    before = await desk.store.response(desk.owner, begin.turn)
    await desk.store.ask_to_stop(desk.owner, begin.turn)
    assert await desk.store.response(desk.owner, begin.turn) == before


async def test_a_turn_that_is_handed_over_can_be_adopted_at_once_but_only_its_holder_can_do_so(
    desk: Desk,
) -> None:
    begin, _ = await desk.begins("1", lease_seconds=60.0)
    lease = Lease(desk.owner, begin.turn)
    await desk.store.hand_over([lease], "somebody-else")
    assert await desk.store.adopt(lease, "gateway-2", 60) is None
    await desk.store.hand_over([lease], "gateway-1")
    assert await desk.store.adopt(lease, "gateway-2", 60) == 2


async def test_a_renewed_lease_is_not_expired_and_cannot_be_adopted(desk: Desk) -> None:
    begin, _ = await desk.begins("1", lease_seconds=0.0)
    lease = Lease(desk.owner, begin.turn)
    await desk.store.renew([lease], "somebody-else", 60)
    assert await desk.store.expired() == [lease]
    await desk.store.renew([lease], "gateway-1", 60)
    assert await desk.store.expired() == []
    assert await desk.store.adopt(lease, "gateway-2", 60) is None


async def test_a_finished_turn_leaves_no_lease(desk: Desk) -> None:
    begin, _ = await desk.begins("1", lease_seconds=0.0)
    await desk.store.finish(desk.answers(begin, "2"))
    await desk.store.renew([Lease(desk.owner, begin.turn)], "gateway-1", 0.0)
    assert await desk.store.expired() == []


async def test_a_response_is_given_back_as_stored(desk: Desk) -> None:
    conversation = await desk.conversation()
    begin, _ = await desk.begins("1", conversation=conversation, request=b"\x00asked")
    running = await desk.store.response(desk.owner, begin.turn)
    assert (running.status, running.result, running.output) == ("in_progress", None, [])
    await desk.store.finish(desk.answers(begin, "2", result=b"\xffdone", status="incomplete"))
    stored = await desk.store.response(desk.owner, begin.turn)
    assert (stored.status, stored.request, stored.result) == ("incomplete", b"\x00asked", b"\xffdone")
    assert (stored.conversation, stored.previous, stored.created_at) == (conversation, None, 1_700_000_000)
    assert (texts(stored.input), texts(stored.output)) == (["1"], ["2"])


async def test_previous_responses_chain_and_fork(desk: Desk) -> None:
    one = await desk.turn("1", "2")
    left = await desk.turn("3", "4", previous=one)
    right = await desk.turn("5", "6", previous=one)
    assert texts(await desk.store.history(desk.owner, None, left)) == ["1", "2", "3", "4"]
    assert texts(await desk.store.history(desk.owner, None, right)) == ["1", "2", "5", "6"]
    begin, _ = await desk.begins("7", previous=right)
    assert texts(await desk.store.history(desk.owner, None, begin.turn)) == ["1", "2", "5", "6", "7"]


async def test_a_response_in_a_conversation_has_the_conversation_up_to_itself_as_context(desk: Desk) -> None:
    conversation = await desk.conversation()
    first = await desk.turn("1", "2", conversation=conversation)
    await desk.turn("3", "4", conversation=conversation)
    assert texts(await desk.store.history(desk.owner, None, first)) == ["1", "2"]
    aside = await desk.turn("5", "6", previous=first)
    assert texts(await desk.store.history(desk.owner, None, aside)) == ["1", "2", "5", "6"]
    assert texts(await desk.store.history(desk.owner, conversation, None)) == ["1", "2", "3", "4"]


async def test_a_deleted_response_takes_its_items_and_breaks_its_chain(desk: Desk, redis_server: RedisServer) -> None:
    one = await desk.turn("secret", "2")
    two = await desk.turn("3", "4", previous=one)
    await desk.store.delete_response(desk.owner, one)
    assert "secret" not in str(dump(redis_server))
    with pytest.raises(PreviousResponseNotFound):
        await desk.store.history(desk.owner, None, two)
    await desk.store.delete_response(desk.owner, two)
    assert [key for key in dump(redis_server) if not key.startswith("dm:usage")] == []


async def test_a_running_response_cannot_be_deleted_and_an_unknown_one_is_not_found(desk: Desk) -> None:
    begin, _ = await desk.begins("1")
    with pytest.raises(ConversationLocked):
        await desk.store.delete_response(desk.owner, begin.turn)
    for id in ("resp_none", "a:b"):
        with pytest.raises(NotFound):
            await desk.store.delete_response(desk.owner, id)
        with pytest.raises(NotFound):
            await desk.store.response(desk.owner, id)


async def test_a_conversation_keeps_the_items_of_a_deleted_response(desk: Desk) -> None:
    conversation = await desk.conversation()
    turn = await desk.turn("1", "2", conversation=conversation)
    await desk.store.delete_response(desk.owner, turn)
    assert texts(await desk.store.history(desk.owner, conversation, None)) == ["1", "2"]
