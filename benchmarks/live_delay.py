"""How old the frames of a stream are when a detector gets them: `python benchmarks/live_delay.py [--seconds 20]`.

The RTSP server of the tests sends numbered frames (160x96, H.264, TCP on this machine) and remembers when; a reader takes the
newest frame, and then sleeps as long as a detector would need. The delay is from sending to taking, network, decoding and
waiting included; "behind" counts the frames that were sent in the meantime. A queue would fall behind by the frames that are
dropped here.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from verdict import RESULTS, at_most, conclude

from flyspeck.infer.video.live import LiveReader

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "infer" / "video"))
from rtsp_serving import RtspServer, number_of

CASES = ((25, 0.0), (25, 0.2), (50, 0.2), (25, 1.0))
"""Frames a second, and seconds that the detector takes for one."""


def measured(rate: int, detector: float, seconds: float) -> dict[str, float]:
    """What came, was used and dropped, and the delays in seconds."""
    delays, behind = [], []
    with RtspServer(rate=rate) as server:
        reader, begun = LiveReader(server.url), time.monotonic()
        for frame in reader.frames():
            number = number_of(np.asarray(frame.image))
            delays.append(time.monotonic() - server.sent[number])
            behind.append(max(server.sent) - number)
            time.sleep(detector)
            if time.monotonic() - begun > seconds:
                break
        reader.close()
    return {
        "rate": rate,
        "detector_s": detector,
        "came": reader.arrived,
        "used": reader.taken,
        "delay_median_s": round(float(np.median(delays)), 4),
        "delay_95_s": round(float(np.percentile(delays, 95)), 4),
        "delay_max_s": round(max(delays), 4),
        "behind_max": max(behind),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    asked = parser.parse_args()
    rows = []
    for rate, detector in CASES:
        rows.append(measured(rate, detector, asked.seconds))
        print(rows[-1], flush=True)
    worst = max(row["behind_max"] for row in rows)
    claims = [at_most("a detector is few frames behind the stream, however slow it is", worst, 5, " frames")]
    conclude({"rows": rows}, claims, RESULTS / "live_delay.json")


if __name__ == "__main__":
    main()
