# Owns the programs whose every order is tried: two or three threads that share descriptors, slots and instances.
from __future__ import annotations

from tests.host.machine import Scenario

ONE = "epoll e; socket s; create 0; add e s 0; ready s"
IDLE = "epoll e; socket s; create 0; add e s 0"
TWO = "epoll e; socket s; socket t; create 0; create 1; add e s 0; add e t 1; ready s; ready t"
NEXT = "socket s; create 0; add e s 0; ready s"


def _all(prepare: str, **threads: tuple[str, ...]) -> list[Scenario]:
    return [Scenario(prepare, calls, name.replace("_", " ")) for name, calls in threads.items()]


SCENARIOS = [
    *_all(
        ONE,
        # who closes and who destroys: the loop, a worker, both in turn
        worker_removes_closes_destroys=("wait e; wait e", "del e s; close s; destroy 0; return"),
        worker_closes_destroys=("wait e; wait e", "close s; destroy 0; return; wait e"),
        worker_destroys_first=("wait e; wait e", "destroy 0; del e s; close s; return; wait e"),
        worker_destroys_then_closes=("wait e; wait e", "destroy 0; return; close s"),
        worker_forgets_to_remove=("wait e; wait e", "dup s d; close s; destroy 0; return"),
        loop_closes_worker_destroys=("wait e; close s; wait e", "destroy 0; return; wait e"),
        both_close=("wait e; close s", "close s; destroy 0; return"),
        both_remove=("del e s; close s", "del e s; destroy 0; return; wait e"),
        both_destroy=("destroy 0; return; close s; wait e", "destroy 0; return; wait e"),
        # the slot, the number, the file and the epitem are all used again
        reborn_by_the_loop=("wait e; wait e", f"del e s; close s; destroy 0; return; {NEXT}"),
        reborn_without_removal=("wait e; wait e", f"close s; destroy 0; return; {NEXT}"),
        reborn_while_registered=("wait e; wait e", "dup s d; close s; destroy 0; return; create 0; socket s"),
        reborn_by_another=("del e s; close s; destroy 0; return; wait e", "create 0; socket t; add e t 0"),
        given_out_twice=("create 0; socket t; add e t 0", "wait e; del e s; wait e"),
        given_out_after_two_destroys=(
            "destroy 0; return; create 0",
            "destroy 0; create 0; socket t; add e t 0",
        ),
        # one number, many hands
        accept_takes_the_number=(
            "close s; destroy 0; return; wait e",
            "socket t; create 1; add e t 1; wait e",
        ),
        modified_while_closed=("mod e s 0; wait e", "close s; destroy 0; return"),
        modified_while_removed=("mod e s 0; wait e", "del e s; destroy 0; return; wait e"),
        moved_to_another_slot=("create 1; mod e s 1; wait e", "wait e; destroy 0; return; wait e"),
        added_while_removed=("del e s; wait e; add e s 0", "wait e; close s; destroy 0"),
        duplicated_while_closed=("dup s d; wait e; wait e", "close s; destroy 0; return; wait e"),
        duplicated_over=("socket t; dup2 t s; wait e", "destroy 0; return; wait e; close s"),
        one_shot=("mod e s 0 oneshot; wait e; wait e", "del e s; close s; destroy 0"),
        edge=("mod e s 0 edge; wait e; ready s", "close s; destroy 0; return; wait e"),
        ranges=("close_range s s; wait e", "wait e; destroy 0; return; wait e"),
        # descriptions that live on elsewhere
        forked=("fork 1; close s; destroy 0; return; wait e", "wait e; child_exit 1"),
        forked_before_the_close=("fork 1; wait e; child_exit 1", "close s; wait e; destroy 0"),
        in_flight=("send s; close s; destroy 0; return; wait e", "wait e; received s; wait e"),
        # kernels in which the file goes after its number, or after the call
        slow_close=("slow_close s; destroy 0; return; wait e", "wait e; wait e"),
        late_close=("late_close s; destroy 0; return; wait e", "wait e; wait e"),
        late_close_and_the_next=("late_close s; destroy 0; return", f"{NEXT}; wait e"),
        # instances
        instance_closed=("close e; destroy 0; return", "wait e; epoll e; add e s 0; wait e"),
        two_instances=("epoll f; add f s 0; wait f; wait f", "del e s; close s; destroy 0"),
    ),
    *_all(
        IDLE,
        ready_late=("wait e; wait e", "ready s; destroy 0; return; wait e"),
        registers_what_it_creates=("socket t; add e t 1; create 1; wait e", "wait e; ready t; wait e"),
        registers_a_free_slot=("destroy 0; return; close s", "socket t; add e t 0; wait e; create 0"),
        removal_within_destroy=("destroy 0; del e s; return; wait e", "ready s; wait e; close s"),
        destroy_within_destroy=("destroy 0; destroy 0; del e s; return; return", "ready s; wait e; wait e"),
        created_within_create=("destroy 0; del e s; return; create 0; create 0", "wait e; ready s; wait e"),
    ),
    *_all(
        "epoll e",
        a_whole_life=("socket s; create 0; add e s 0; ready s", "wait e; del e s; close s; destroy 0"),
        two_whole_lives=(
            "socket s; create 0; add e s 0; close s; destroy 0",
            "wait e; socket t; add e t 1; wait e",
        ),
    ),
    *_all(
        TWO,
        two_connections=("wait e; close s; destroy 0; return", "close t; destroy 1; return; wait e"),
        each_closes_the_others=("wait e; close t; destroy 1; return", "wait e; close s; destroy 0; return"),
        slots_change_places=("del e s; destroy 0; return; create 0; add e s 1", "wait e; destroy 1; wait e"),
    ),
    *_all(
        ONE,
        # three threads
        three_closers=("close s; destroy 0", "close s; wait e", "wait e; create 0"),
        three_waiters=("wait e; destroy 0", "wait e", "close s; wait e"),
        accept_loop_and_worker=("wait e; wait e", "close s; destroy 0", "socket t; create 1; add e t 1"),
        remove_close_modify=("del e s; wait e", "close s; destroy 0", "mod e s 0; wait e"),
        create_destroy_wait=("destroy 0; return; wait e", "create 0; socket t; add e t 0", "wait e; close s"),
        fork_close_wait=("fork 1; child_exit 1", "close s; destroy 0; return", "wait e; wait e"),
    ),
]
"""Each program with its threads' calls. Sizes: 2 to 3 threads of 2 to 6 calls."""
