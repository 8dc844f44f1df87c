"""A cable that takes its time, where the kernel has no netem: `HOST SWITCH MILLISECONDS`, in the switch's namespace.

Frames that come from the host's end (a packet socket) go to a tap device on the switch after the delay, and back.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque

ETH_P_ALL = 3
PACKET_OUTGOING = 4
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 2, 0x1000
FRAME_MAX = 65536


def run(host: str, switch: str, delay_s: float) -> None:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"{host}-slow"
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", name, "master", switch, "up"], check=True)
    cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    cable.bind((host, ETH_P_ALL))
    cable.setblocking(False)
    waiting: deque[tuple[float, bool, bytes]] = deque()  # due, to the host, frame
    while True:
        left = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select([tap, cable.fileno()], [], [], left)
        now = time.monotonic()
        if tap in ready:
            waiting.append((now + delay_s, True, os.read(tap, FRAME_MAX)))
        if cable.fileno() in ready:
            frame, about = cable.recvfrom(FRAME_MAX)
            if about[2] != PACKET_OUTGOING:  # our own
                waiting.append((now + delay_s, False, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, to_host, frame = waiting.popleft()
            try:
                if to_host:
                    cable.send(frame)
                else:
                    os.write(tap, frame)
            except OSError:
                continue  # lost, as on any cable


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]) / 1000)
