"""The worker: reads the hardware and a model directory, plans, and becomes vLLM's own server with that plan."""
