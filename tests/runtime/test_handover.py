"""A flood of messages does not pile up in the daemon."""

from __future__ import annotations

import asyncio
import threading

from world_waiting import eventually

from edgepack_runtime.handover import Handover


def test_a_flood_waits_outside_and_comes_in_order():
    loop, taken, put = asyncio.new_event_loop(), [], []
    handover = Handover(loop, lambda topic, payload: taken.append((topic, payload)), most=4)

    def flood():
        for number in range(100):
            handover.put("t", b"%d" % number)
            put.append(number)
        loop.call_soon_threadsafe(loop.stop)

    link = threading.Thread(target=flood)
    link.start()
    # nobody takes any: the fifth waits
    eventually(lambda: len(put) == 4, lambda: put)
    assert not handover._free.acquire(blocking=False)
    assert len(put) == 4
    loop.run_forever()
    link.join()
    loop.close()
    assert taken == [("t", b"%d" % number) for number in range(100)]
