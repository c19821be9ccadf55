"""Measures a cluster: `throughput`, with its floor and a check of every row, and `latency`, with the cost of idling.

Every run has schemas of its own, which are dropped at its end; nothing else on a server is touched.
"""
