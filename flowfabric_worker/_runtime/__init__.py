"""The parts of a worker process, private: each file is one kind of thread or one responsibility.

`flowfabric_worker.runtime` starts and stops them.
"""
