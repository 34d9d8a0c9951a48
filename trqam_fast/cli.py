"""Exit statuses and one-sentence errors, the same for every command."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from trqam_fast.errors import FAILURE, RunError, Stopped, UsageError
from trqam_fast.kernels import BackendError


def run_command(main: Callable[[], int]) -> int:
    """Run `main`; print expected errors as one sentence and return the exit status."""
    # Of the simulators: no display is needed, and their action bounds are given in float64.
    warnings.filterwarnings("ignore", module="glfw")
    warnings.filterwarnings("ignore", message=".*Box (low|high)'s precision lowered")
    try:
        return main()
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.status
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        sys.stdout = None
        return FAILURE
    except OSError as error:
        print(f"error: {error}; what was saved before is untouched", file=sys.stderr)
        return FAILURE
    except BackendError as error:
        print(f"error: {error}", file=sys.stderr)
        return UsageError.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return FAILURE
