"""One file a part: `run(task) -> result(...)`, in a process of its own."""
