"""`shardflow demo`: Python's standard library, indexed on three servers while a worker is killed.

`app` is what a user would write; `run` tells the story; `truth` computes the same without shardflow and compares.
"""
