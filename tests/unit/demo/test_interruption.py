"""Ctrl-C at any moment of the demo's start."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from exporter.demo import command
from tests.helpers.deadlines import scaled


async def test_a_lost_cancellation_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = asyncio.Event()

    async def loses_the_first(_: Path) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(scaled(60))
        except asyncio.CancelledError:  # as the driver of MongoDB does now and then
            lost.set()
        await asyncio.sleep(scaled(60))

    monkeypatch.setattr(command, "_predecessor_gone", loses_the_first)
    demo = asyncio.create_task(command.run(tmp_path / "demo", fresh=False, port=0))
    try:
        await asyncio.wait([demo], timeout=scaled(10))
        assert lost.is_set()
        assert demo.done()
        assert demo.result() == 0
    finally:
        demo.cancel()
