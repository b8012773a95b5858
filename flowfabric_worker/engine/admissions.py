"""How a claim passes a quota of another partition: the quota admits some, the claim takes at most that many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from flowfabric_worker.engine.budget_debts import BudgetDebts
from flowfabric_worker.engine.errors import EngineError, NotFoundError, TransportError
from flowfabric_worker.engine.stores.base import Argument, Reply
from flowfabric_worker.engine.wire import pack

# For how many ms work waits whose quota cannot be asked, because its partition is away or its data is damaged.
_ASK_AGAIN_MS = 5000
# How many quotas one call asks at most: the gates of as many classes as a claim names.
_MOST_ASKED = 64


class Admissions(BudgetDebts):
    """The chain of a call that takes work under a quota of another partition.

    The call is sent first without admissions. Its reply names the quota that it has to ask, if there is one; then the
    quota's partition admits a number under the claim's id, and the call is sent again with that. What it took is a debt
    of its partition: the caller pays it at once, and upkeep if the caller died. Each step may be repeated, and what is
    admitted to a claim that never settles lapses.
    """

    def passing(
        self, partition: int, claim_id: str, send: Callable[[bytes], Reply], asked: Callable[[Reply], Sequence[bytes]]
    ) -> Reply:
        """Send a call, and ask quotas of other partitions until it can go on; return the last reply.

        A reply that still asks is returned after many quotas were asked.

        Args:
            partition: the partition of the call.
            claim_id: the id of the claim.
            send: sends the call with what was admitted to it, the fourth part of its holder; empty at first.
            asked: returns the quota that a reply asks, for how many, how many are ready, and the moment of the
                partition's clock; else nothing.
        """
        reply = send(b"")
        for _ in range(_MOST_ASKED):
            wants = asked(reply)
            if not wants:
                break
            self.owing.add(partition)
            home = self.home_of_address(wants[0][1:])
            admission, owed = self._admission(partition, claim_id, home, *wants)
            try:
                reply = send(admission)
            except TransportError:
                # It is unknown what the call took.
                raise
            except EngineError:
                self.pay_now(partition)
                raise
            if owed:
                self.pay_all_now(home, owed)
        return reply

    def _admission(
        self, partition: int, claim_id: str, home: int, gate: bytes, *counts: bytes
    ) -> tuple[bytes, Sequence[bytes]]:
        """Return what a quota of another partition admits to a claim, and what that partition owes by it.

        Nothing is admitted by a quota that was deleted.
        """
        quota, (wanted, ready, now) = gate[1:], counts
        try:
            about: list[Argument] = [quota, claim_id, str(partition), wanted, ready]
            _, granted, usable_for, lapses, news, owed = self.call_elsewhere("admit_claim", home, about)
            return _packed(gate, granted, int(now) + int(usable_for), lapses, news), owed
        except NotFoundError:
            # It was deleted while work that names it was created, which is not limited then, as beside its quota.
            with contextlib.suppress(EngineError):
                self.call("disuse_quota", partition, [quota, "1"])
            return b"", ()
        except EngineError:
            # Other work goes on meanwhile.
            news = pack(("", "", str(_ASK_AGAIN_MS), "", "0"))
            return _packed(gate, b"0", 0, b"0", news), ()


def _packed(gate: bytes, count: bytes, usable_until: int, lapses: bytes, news: bytes) -> bytes:
    """Return the part of a holder that `ff.receive_admissions` reads."""
    return pack((pack((gate, count, str(usable_until), lapses, news)),))


def asked_of(reply: Reply) -> Sequence[bytes]:
    """Return the quota that a reply `asks`, for how many, and when; nothing if it is another reply."""
    return reply[1:] if reply[0] == b"asks" else ()
