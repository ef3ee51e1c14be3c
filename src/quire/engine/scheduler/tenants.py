"""Who is next, and who must give way, where several tenants share one engine.

Each tenant has a clock that runs on with every token that is run for it. The tenant whose clock is furthest behind
goes first (a virtual token counter, after Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). Who
was away does not come back with credit: its clock is set to that of the tenant furthest behind among those present.

Order alone is not enough where one tenant's long answers hold all rows, or all blocks. So a tenant below its share of
them takes what it needs from the one that is furthest above. Nobody ever takes from who is within its share, which is
the whole divided by the tenants present; so two of them cannot take from each other in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from quire.engine.scheduler.request import Request


class Tenants:
    """Owns what each tenant has been given. With one tenant, or none, it changes nothing."""

    def __init__(self) -> None:
        self._clocks: dict[str, int] = {}
        self._num_present: dict[str, int] = {}
        self._num_rows: dict[str, int] = {}

    @property
    def several(self) -> bool:
        """Whether there is anybody to be fair to."""
        return len(self._num_present) > 1

    def come(self, tenant: str) -> None:
        """A request arrived."""
        if tenant not in self._num_present:
            behind = min((self._clocks[other] for other in self._num_present), default=0)
            self._clocks[tenant] = max(self._clocks.get(tenant, 0), behind)
        self._num_present[tenant] = self._num_present.get(tenant, 0) + 1

    def go(self, tenant: str) -> None:
        """A request ended."""
        self._num_present[tenant] -= 1
        if not self._num_present[tenant]:
            del self._num_present[tenant]

    def run(self, tenant: str, count: int) -> None:
        """Tokens run in a step."""
        self._clocks[tenant] += count

    def take_row(self, tenant: str) -> None:
        """A request takes a row."""
        self._num_rows[tenant] = self._num_rows.get(tenant, 0) + 1

    def give_row(self, tenant: str) -> None:
        """A request gives its row back."""
        self._num_rows[tenant] -= 1

    def rank(self, tenant: str) -> tuple[int, int]:
        """Smaller is served earlier; of two clocks that show the same, that of the tenant with fewer rows."""
        return self._clocks[tenant], self._num_rows.get(tenant, 0)

    def pays_a_row(self, tenant: str, num_rows: int) -> str | None:
        """Who gives up one of `num_rows` for this tenant; None if it has its share, or nobody is above his."""
        return self._payer(self._num_rows, num_rows, tenant, 1)

    def pays_blocks(self, num_blocks: int, running: Iterable[Request], tenant: str, needed: int) -> str | None:
        """The same for blocks, of which the tenant needs so many."""
        held: dict[str, int] = {}
        for request in running:
            held[request.tenant] = held.get(request.tenant, 0) + len(request.blocks)
        return self._payer(held, num_blocks, tenant, needed)

    def _payer(self, held: Mapping[str, int], total: int, tenant: str, needed: int) -> str | None:
        """The last request of a tenant is not taken: so the oldest of all requests always gets on."""
        share = total / len(self._num_present)
        if held.get(tenant, 0) + needed > share:
            return None
        above = [other for other, count in held.items() if count > share and self._num_rows.get(other, 0) > 1]
        return max(above, key=lambda other: held[other], default=None)
