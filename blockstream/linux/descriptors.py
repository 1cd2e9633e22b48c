"""How many descriptors a process may have."""

import resource


def allow_descriptors(count: int) -> bool:
    """Let this process have so many descriptors, if its user may; return whether it may.

    The usual limit of 1024 is there for programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            return False
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    return True
