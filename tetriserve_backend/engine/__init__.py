"""The engine: a pure state machine (events in, commands out) and the asyncio shell around it."""
