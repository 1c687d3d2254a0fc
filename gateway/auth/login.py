"""Signing in: a link or a name and password become a Person; knows neither cookies nor HTTP."""

from gateway.auth.links import Links
from gateway.auth.passwords import Passwords
from gateway.auth.people import People, Person, folded
from gateway.auth.throttle import Attempt, Throttle
from gateway.errors import BadRequest, Busy, Unauthenticated


class Login:
    def __init__(self, people: People, links: Links, passwords: Passwords, throttle: Throttle) -> None:
        self._people = people
        self._links = links
        self._passwords = passwords
        self._throttle = throttle

    async def by_link(self, token: str) -> Person:
        """Spends the link. Raises Unauthenticated."""
        user = await self._links.open(token)
        person = await self._people.get(user) if user else None
        if person is None or person.disabled:
            raise Unauthenticated(
                "This sign-in link has been used or has expired; ask your administrator for a new one.",
                code="invalid_link",
            )
        return person

    async def by_password(self, name: str, password: str, address: str) -> Person:
        """Raises Unauthenticated, the same for a wrong name as for a wrong password, or Busy."""
        attempt = await self._throttle.begin(folded(name), address)
        person = await self._people.named(name)
        matches = await self._verify(attempt, password, person.password_hash if person else None)
        if person is None or person.disabled or not matches:
            raise Unauthenticated("Name or password is wrong.", code="invalid_credentials")
        await self._throttle.succeeded(attempt)
        await self._rehash(person, password)
        return person

    async def change_password(self, person: Person, current: str | None, new: str, address: str) -> None:
        """Raises BadRequest for a wrong current password or a weak new one, or Busy."""
        self._passwords.check(new, person.name)
        if person.password_hash:
            await self._check_current(person, current, address)
        await self._people.set_password_hash(person.id, await self._passwords.hash(new))

    async def _check_current(self, person: Person, current: str | None, address: str) -> None:
        if current is None:
            raise BadRequest("The current password is needed to change it.", code="missing_parameter", param="current")
        try:
            await self.by_password(person.name, current, address)
        except Unauthenticated:
            raise BadRequest("The current password is wrong.", code="wrong_password", param="current") from None

    async def _verify(self, attempt: Attempt, password: str, hash: str | None) -> bool:
        try:
            return await self._passwords.verify(password, hash)
        except Busy:
            await self._throttle.withdraw(attempt)
            raise

    async def _rehash(self, person: Person, password: str) -> None:
        if person.password_hash and self._passwords.is_outdated(person.password_hash):
            await self._people.set_password_hash(person.id, await self._passwords.hash(password))
