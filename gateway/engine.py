"""The only file that speaks to vLLM: its health, its plan, token counts, streams of tokens.

Knows nothing of people, queues or storage. The one thing it decides is which worker gets a request.
"""
