"""Which signals ask a command to stop."""

import signal


def stop_signals() -> list[signal.Signals]:
    """SIGINT, SIGTERM and SIGHUP, but for those that whoever started us had ignored, as `nohup` does."""
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in asked if signal.getsignal(number) is not signal.SIG_IGN]
