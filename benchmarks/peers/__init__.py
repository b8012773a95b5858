"""The peers: one script each, run by the Python of a separate environment.

A script is a peer if it begins with a block of inline metadata (PEP 723). Its `dependencies` fill the
environment; without any, the script runs where the benchmarks run. `tool.benchmarks.share` says which share of the
tasks a slow one gets, so that a round does not take minutes: only rates are compared.

The protocol: `python -m benchmarks.peers.NAME STEP TASKS`, with the server in `$BENCHMARK_URL`, prints one line
of JSON, `{"figures": {row: value}}`. `STEP` is a method of `base.Peer`; one that a peer does not have
gives no figures. `versions` as step gives `{"versions": {package: version}}`, `commands` what runs one worker process:
`{"commands": [[word, ...]]}`. `$BENCHMARK_VARIANT` may ask for another setting than the usual one.
"""
