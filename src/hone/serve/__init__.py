"""The OpenAI-compatible server: HTTP, limits, metrics, the engine's own process, the playground.

Here: everything between a socket and token ids. Not here: how tokens are made (engine), or what a
model answers about (recipes).
"""
