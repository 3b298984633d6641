"""The wire protocol of OpenAI's clients: requests, answers, streams and errors.

Here: what stands in a body and what is written back. Not here: sockets, routes and keys (the app),
bounds (limits), or how tokens come about (the engine's client).
"""
