"""The promises of conversations and their items: owners, branches, pages, search, retention. On every server."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from pydoc_data.topics import topics

import pytest

from gateway.conversations import Append, Json, Lease
from gateway.conversations.store import BRANCH_OF, ROOT, TITLE, RedisConversations
from gateway.errors import ConversationLocked, NotFound, PreviousResponseNotFound, Refusal, VersionConflict
from gateway.redis_client import RedisClient
from tests.contract.conftest import Desk, dump, said, texts
from tests.servers import RedisServer


async def test_create_get_update_delete(desk: Desk, redis_server: RedisServer) -> None:
    made = await desk.store.create(desk.owner, {TITLE: "Tëst", "a": "b"}, [said("1"), said("2")])
    assert made == await desk.store.get(desk.owner, made.id)
    assert (made.metadata, made.version, made.running) == ({TITLE: "Tëst", "a": "b"}, 1, None)
    assert texts(await desk.store.history(desk.owner, made.id, None)) == ["1", "2"]

    changed = await desk.store.update(desk.owner, made.id, {"c": "d"}, made.version)
    assert (changed.metadata, changed.version) == ({"c": "d"}, 2)
    with pytest.raises(VersionConflict) as refused:
        await desk.store.update(desk.owner, made.id, {}, made.version)
    assert refused.value.details == {"version": 2}

    await desk.store.delete(desk.owner, made.id)
    with pytest.raises(NotFound):
        await desk.store.get(desk.owner, made.id)
    assert dump(redis_server) == {}


async def test_what_belongs_to_somebody_else_does_not_exist(desk: Desk, redis_server: RedisServer) -> None:
    conversation = await desk.conversation()
    turn = await desk.turn("1", "2", conversation=conversation)
    running, begun = await desk.begins("3", conversation=conversation, lease_seconds=0.0)
    await desk.store.append([Append(desk.owner, running.turn, begun.fence, 1, [b"log"])])
    item = begun.input[0].id
    before = dump(redis_server)
    eve = Desk(desk.store, "u_eve")
    store, who = eve.store, eve.owner

    refused: list[tuple[type[Refusal], Callable[[], Awaitable[object]]]] = [
        (NotFound, lambda: store.begin(eve.asks("?", conversation=conversation))),
        (PreviousResponseNotFound, lambda: store.begin(eve.asks("?", previous=turn))),
        (NotFound, lambda: store.history(who, conversation, None)),
        (PreviousResponseNotFound, lambda: store.history(who, None, turn)),
        (NotFound, lambda: store.response(who, turn)),
        (NotFound, lambda: store.delete_response(who, turn)),
        (PreviousResponseNotFound, lambda: store.create(who, {BRANCH_OF: turn}, [])),
        (NotFound, lambda: store.get(who, conversation)),
        (NotFound, lambda: store.list(who, 10, conversation, None)),
        (NotFound, lambda: store.update(who, conversation, {}, None)),
        (NotFound, lambda: store.delete(who, conversation)),
        (NotFound, lambda: store.add_items(who, conversation, [said("?")])),
        (NotFound, lambda: store.items(who, conversation, 10, "asc", None)),
        (NotFound, lambda: store.item(who, conversation, item)),
        (NotFound, lambda: store.delete_item(who, conversation, item)),
    ]
    for error, call in refused:
        with pytest.raises(error):
            await call()
    assert await store.list(who, 10, None, None) == ([], False)
    assert await store.log(who, running.turn) == []
    assert await store.append([Append(who, running.turn, begun.fence, 2, [b"?"])]) == [False]
    assert await store.finish(eve.answers(running, "?", begun.fence)) is None
    assert await store.adopt(Lease(who, running.turn), "gateway-1", 60) is None
    await store.undo(who, running.turn, begun.fence)
    await store.renew([Lease(who, running.turn)], "gateway-1", 60)
    assert dump(redis_server) == before


async def test_an_id_cannot_reach_into_another_owners_keys(desk: Desk) -> None:
    other = Desk(desk.store, "u_ada.b")
    conversation = await other.conversation()
    with pytest.raises(NotFound):
        await desk.store.get("u_ada.b:x", f"../{conversation}")
    with pytest.raises(ValueError, match="Redis key"):
        await desk.store.create("a:b", {}, [])


async def test_a_branch_shares_items_and_the_last_holder_takes_them_along(
    desk: Desk, redis_server: RedisServer
) -> None:
    trunk = await desk.conversation()
    first = await desk.turn("root-1", "root-2", conversation=trunk)
    await desk.turn("trunk-3", "trunk-4", conversation=trunk)
    branch = (await desk.store.create(desk.owner, {BRANCH_OF: first}, [])).id
    await desk.turn("branch-3", "branch-4", conversation=branch)
    assert texts(await desk.store.history(desk.owner, trunk, None)) == ["root-1", "root-2", "trunk-3", "trunk-4"]
    assert texts(await desk.store.history(desk.owner, branch, None)) == ["root-1", "root-2", "branch-3", "branch-4"]
    assert str(dump(redis_server)).count("root-1") == 1  # stored once

    await desk.store.delete(desk.owner, trunk)
    left = str(dump(redis_server))
    assert "trunk-3" not in left
    assert "root-1" in left
    assert texts(await desk.store.history(desk.owner, branch, None)) == ["root-1", "root-2", "branch-3", "branch-4"]

    await desk.store.delete(desk.owner, branch)
    assert [key for key in dump(redis_server) if not key.startswith("dm:usage")] == []


async def test_a_branch_of_a_chain_outlives_the_chain(desk: Desk, redis_server: RedisServer) -> None:
    one = await desk.turn("1", "2")
    two = await desk.turn("3", "4", previous=one)
    branch = (await desk.store.create(desk.owner, {BRANCH_OF: two}, [said("5")])).id
    twig_of = await desk.turn("6", "7", conversation=branch)
    twig = (await desk.store.create(desk.owner, {BRANCH_OF: twig_of}, [])).id
    for turn in (one, two):
        await desk.store.delete_response(desk.owner, turn)
    await desk.store.delete(desk.owner, branch)
    assert texts(await desk.store.history(desk.owner, twig, None)) == ["1", "2", "3", "4", "5", "6", "7"]
    await desk.store.delete(desk.owner, twig)
    assert [key for key in dump(redis_server) if not key.startswith("dm:usage")] == []


async def test_a_branch_of_an_unknown_or_running_response_is_refused(desk: Desk) -> None:
    for id in ("resp_none", "a:b"):
        with pytest.raises(PreviousResponseNotFound):
            await desk.store.create(desk.owner, {BRANCH_OF: id}, [])
    begin, _ = await desk.begins("1")
    with pytest.raises(ConversationLocked):
        await desk.store.create(desk.owner, {BRANCH_OF: begin.turn}, [])


async def test_deleting_a_conversation_deletes_its_responses_and_logs(desk: Desk, redis_server: RedisServer) -> None:
    conversation = await desk.conversation()
    begin, begun = await desk.begins("1", conversation=conversation)
    await desk.store.append([Append(desk.owner, begin.turn, begun.fence, 1, [b"log"])])
    with pytest.raises(ConversationLocked):
        await desk.store.delete(desk.owner, conversation)
    await desk.store.finish(desk.answers(begin, "2"))
    await desk.store.delete(desk.owner, conversation)
    assert [key for key in dump(redis_server) if not key.startswith("dm:usage")] == []


async def test_the_list_shows_the_last_used_first_page_by_page(desk: Desk) -> None:
    made = []
    for n in range(7):
        made.append(await desk.conversation(**{TITLE: f"n{n}"}))
        await asyncio.sleep(0.002)  # the order counts milliseconds
    await desk.turn("1", "2", conversation=made[0])
    expected = [made[0], *reversed(made[1:])]
    seen: list[str] = []
    more = True
    while more:
        page, more = await desk.store.list(desk.owner, 3, seen[-1] if seen else None, None)
        seen += [conversation.id for conversation in page]
    assert seen == expected
    with pytest.raises(NotFound):
        await desk.store.list(desk.owner, 3, "conv_none", None)


async def test_titles_are_searched_whatever_their_case(desk: Desk) -> None:
    for title in ("Grüße aus Köln", "ΣΊΣΥΦΟΣ", "量子计算入门", "plain", "plainer"):
        await desk.conversation(**{TITLE: title})
    await desk.conversation()

    async def search(query: str, limit: int = 10) -> tuple[set[str], bool]:
        found, more = await desk.store.list(desk.owner, limit, None, query)
        return {c.metadata[TITLE] for c in found}, more

    assert await search("KÖLN") == ({"Grüße aus Köln"}, False)
    assert await search("grüsse") == ({"Grüße aus Köln"}, False)
    assert await search("σίσυφος") == ({"ΣΊΣΥΦΟΣ"}, False)
    assert await search("计算") == ({"量子计算入门"}, False)
    assert await search("Plain") == ({"plain", "plainer"}, False)
    assert (await search("plain", limit=1))[1] is True
    assert await search("nothing") == (set(), False)


async def test_items_are_paged_in_both_directions(desk: Desk) -> None:
    conversation = (await desk.store.create(desk.owner, {}, [said(f"{n}") for n in range(5)])).id

    async def pages(order: str) -> list[list[str]]:
        found, after, more = [], None, True
        while more:
            page, more = await desk.store.items(desk.owner, conversation, 2, order, after)
            found.append(texts(page))
            after = page[-1].id
        return found

    assert await pages("asc") == [["0", "1"], ["2", "3"], ["4"]]
    assert await pages("desc") == [["4", "3"], ["2", "1"], ["0"]]


async def test_a_page_of_items_names_the_turn_of_each_also_of_those_that_branches_share(desk: Desk) -> None:
    trunk = (await desk.store.create(desk.owner, {}, [said("greeting")])).id
    one = await desk.turn("1", "2", conversation=trunk)
    two = await desk.turn("3", "4", conversation=trunk)
    branch = (await desk.store.create(desk.owner, {BRANCH_OF: one}, [])).id
    begin, _ = await desk.begins("5", conversation=branch)
    chained = await desk.turn("8", "9", previous=await desk.turn("6", "7"))
    twig = (await desk.store.create(desk.owner, {BRANCH_OF: chained}, [])).id

    async def turns(conversation: str) -> list[str | None]:
        return [item.turn for item in (await desk.store.items(desk.owner, conversation, 10, "asc", None))[0]]

    assert await turns(trunk) == [None, one, one, two, two]
    assert await turns(branch) == [None, one, one, begin.turn]
    assert [turn is None for turn in await turns(twig)] == [False] * 4
    assert len(set(await turns(twig))) == 2
    await desk.store.delete(desk.owner, trunk)
    assert await turns(branch) == [None, None, None, begin.turn]


async def test_metadata_that_claims_a_branch_of_itself_harms_nobody(desk: Desk) -> None:
    conversation = await desk.conversation()
    turn = await desk.turn("1", "2", conversation=conversation)
    for claim in (turn, "resp_none", "a:b", ""):
        await desk.store.update(desk.owner, conversation, {BRANCH_OF: claim}, None)
        found, _ = await desk.store.items(desk.owner, conversation, 10, "asc", None)
        assert [item.turn for item in found] == [turn, turn]


async def test_the_list_finds_a_conversation_with_its_branches(desk: Desk) -> None:
    root = await desk.conversation(**{TITLE: "root"})
    await desk.conversation(**{TITLE: "another"})
    branches = {await desk.conversation(**{ROOT: root, TITLE: f"branch {n}"}) for n in range(3)}

    async def found(limit: int, query: str | None = None) -> tuple[set[str], bool]:
        page, more = await desk.store.list(desk.owner, limit, None, query, root)
        return {conversation.id for conversation in page}, more

    assert await found(10) == ({root, *branches}, False)
    assert await found(10, "branch") == (branches, False)
    assert (await found(2))[1] is True
    assert await desk.store.list(desk.owner, 10, None, None, "conv_none") == ([], False)


async def test_a_page_goes_on_after_an_item_that_was_deleted_meanwhile(desk: Desk) -> None:
    conversation = (await desk.store.create(desk.owner, {}, [said(f"{n}") for n in range(4)])).id
    page, _ = await desk.store.items(desk.owner, conversation, 2, "asc", None)
    await desk.store.delete_item(desk.owner, conversation, page[-1].id)
    rest, more = await desk.store.items(desk.owner, conversation, 2, "asc", page[-1].id)
    assert (texts(rest), more) == (["2", "3"], False)


async def test_one_item_is_read_and_deleted_by_its_id(desk: Desk) -> None:
    call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}
    conversation = (await desk.store.create(desk.owner, {}, [said("0")])).id
    added = await desk.store.add_items(desk.owner, conversation, [call, said("1")])
    assert added[0].id.startswith("fc_")
    assert await desk.store.item(desk.owner, conversation, added[0].id) == added[0]
    after = await desk.store.delete_item(desk.owner, conversation, added[0].id)
    assert after.version == 3
    assert texts(await desk.store.history(desk.owner, conversation, None)) == ["0", "1"]
    other = await desk.store.create(desk.owner, {}, [said("other")])
    [foreign] = await desk.store.history(desk.owner, other.id, None)
    for id in (added[0].id, added[1].id.replace("msg", "fc"), foreign.id, "msg_short", "", "msg_:1"):
        with pytest.raises(NotFound):
            await desk.store.item(desk.owner, conversation, id)
        with pytest.raises(NotFound):
            await desk.store.delete_item(desk.owner, conversation, id)


async def test_an_item_is_found_by_its_id_wherever_it_lies_but_only_by_its_owner(desk: Desk) -> None:
    call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}
    conversation = (await desk.store.create(desk.owner, {}, [call])).id
    [item] = await desk.store.history(desk.owner, conversation, None)
    turn = await desk.turn("1", "2")
    [asked, answered] = await desk.store.history(desk.owner, None, turn)
    for one in (item, asked, answered):
        assert await desk.store.any_item(desk.owner, one.id) == one
        assert await desk.store.any_item("u_eve", one.id) is None
    await desk.store.delete_item(desk.owner, conversation, item.id)
    for id in (item.id, asked.id.replace("msg", "fc"), "msg_short", "", "msg_:1"):
        assert await desk.store.any_item(desk.owner, id) is None


async def test_an_item_deleted_in_one_branch_stays_in_the_other(desk: Desk) -> None:
    trunk = await desk.conversation()
    turn = await desk.turn("1", "2", conversation=trunk)
    branch = (await desk.store.create(desk.owner, {BRANCH_OF: turn}, [])).id
    [first, _] = await desk.store.history(desk.owner, trunk, None)
    await desk.store.delete_item(desk.owner, trunk, first.id)
    assert texts(await desk.store.history(desk.owner, trunk, None)) == ["2"]
    assert texts(await desk.store.history(desk.owner, branch, None)) == ["1", "2"]


async def test_items_of_a_conversation_do_not_change_under_a_running_turn(desk: Desk) -> None:
    conversation = await desk.conversation()
    _, begun = await desk.begins("1", conversation=conversation)
    with pytest.raises(ConversationLocked):
        await desk.store.add_items(desk.owner, conversation, [said("x")])
    with pytest.raises(ConversationLocked):
        await desk.store.delete_item(desk.owner, conversation, begun.input[0].id)


async def test_items_come_back_unchanged(desk: Desk) -> None:
    odd: Json = {
        "type": "reasoning",
        "summary": [],
        "n": None,
        "f": 0.1,
        "big": 2**53,
        "text": "𝒳\u2028\x00'\"\\/",
        "nested": {"a": [[]]},
    }
    conversation = await desk.store.create(desk.owner, {"k": 'v/\\"é'}, [odd])
    [item] = await desk.store.history(desk.owner, conversation.id, None)
    assert item.body == odd
    assert conversation.metadata == {"k": 'v/\\"é'}


async def test_long_conversations_are_read_whole(desk: Desk) -> None:
    many = [said(f"{n}") for n in range(1200)]
    conversation = (await desk.store.create(desk.owner, {}, many)).id
    assert len(await desk.store.history(desk.owner, conversation, None)) == 1200


async def test_every_key_but_the_shared_ones_has_an_end_unless_retention_is_off(
    desk: Desk, redis_server: RedisServer, redis_client: RedisClient
) -> None:
    await desk.turn("1", "2", conversation=await desk.conversation(), key="k", digest="d", title="T")
    begin, _ = await desk.begins("1", lease_seconds=60)
    await desk.store.append([Append(desk.owner, begin.turn, 1, 1, [b"a"])])
    ttls = {key: int(redis_server.admin("TTL", key)) for key in dump(redis_server)}  # type: ignore[call-overload]
    assert {key for key, ttl in ttls.items() if ttl < 0} == {"dm:leases"}
    assert all(ttl > 29 * 86_400 for key, ttl in ttls.items() if "idem" not in key and "leases" not in key)

    eternal = Desk(RedisConversations(redis_client, retention_days=0, log_ttl_seconds=60), "u_bob")
    await eternal.turn("1", "2", conversation=await eternal.conversation())
    ttls = {key: int(redis_server.admin("TTL", key)) for key in dump(redis_server) if "u_bob" in key}  # type: ignore[call-overload]
    assert {key for key, ttl in ttls.items() if ttl >= 0} == {key for key in ttls if "usage" in key}


async def test_the_first_use_of_a_day_refreshes_the_older_turns(desk: Desk, redis_server: RedisServer) -> None:
    conversation = await desk.conversation()
    old = await desk.turn("1", "2", conversation=conversation)
    chained = await desk.turn("5", "6", previous=await desk.turn("3", "4"))
    conv_key, turns = f"dm:conv:{desk.owner}:{conversation}", [f"dm:turn:{desk.owner}:{t}" for t in (old, chained)]
    for key in turns:
        redis_server.admin("EXPIRE", key, 1000)

    async def use() -> list[bool]:
        await desk.turn("7", "8", conversation=conversation)
        await desk.turn("7", "8", previous=chained)
        return [int(redis_server.admin("TTL", key)) > 1000 for key in turns]  # type: ignore[call-overload]

    assert await use() == [False, False]
    redis_server.admin("HSET", conv_key, "kept", 1)
    redis_server.admin("HSET", turns[1], "kept", 1)
    assert await use() == [True, True]


async def test_an_expired_conversation_leaves_the_list(desk: Desk, redis_server: RedisServer) -> None:
    gone, left = await desk.conversation(), await desk.conversation()
    redis_server.admin("DEL", f"dm:conv:{desk.owner}:{gone}")
    redis_server.admin("ZADD", f"dm:convs:{desk.owner}", 1, gone)
    page, more = await desk.store.list(desk.owner, 10, None, None)
    assert ([c.id for c in page], more) == ([left], False)
    await desk.turn("1", "2", conversation=left)
    assert redis_server.admin("ZRANGE", f"dm:convs:{desk.owner}", 0, -1) == [left.encode()]


async def test_twenty_messages_of_400_bytes_take_less_than_11_kib_with_all_their_records(
    store: RedisConversations, redis_server: RedisServer, record_property: Callable[[str, object], None]
) -> None:
    desk, prose = Desk(store), english()
    await desk.turn("warm", "up", conversation=await desk.conversation())
    before = used_memory(redis_server)
    for _ in range(50):
        conversation = await desk.conversation()
        for _ in range(10):
            await desk.turn(next(prose), next(prose), conversation=conversation, title="What is the meaning of it?")
    kib = (used_memory(redis_server) - before) / 50 / 1024
    record_property("KiB per conversation of ten turns", round(kib, 2))
    assert kib < 11


def english() -> Iterator[str]:
    """Slices of 400 bytes of Python's own manual."""
    text = " ".join(" ".join(topics.values()).split())
    return (text[start : start + 400] for start in count(0, 400))


def used_memory(server: RedisServer) -> int:
    return int(server.admin("INFO", "memory")["used_memory"])  # type: ignore[index]
