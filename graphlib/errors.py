"""Every failure a user can cause, as an exception that says what to do."""


class YupanaError(ValueError):
    """Base of all errors of this library; the message says what, what was wanted, what to do."""


class ShapeError(YupanaError):
    """Shapes, axes or strides that do not fit an operation."""


class DtypeError(YupanaError):
    """A data type an operation does not take."""


class ContextError(YupanaError):
    """A context that is full, or tensors it does not own."""


class GradientError(YupanaError):
    """A gradient that does not exist on the path from the loss to a parameter."""


class GraphError(YupanaError):
    """A graph that cannot be planned or compiled as asked."""


class KernelError(YupanaError):
    """A kernel that numba cannot compile."""


class NonFiniteError(YupanaError):
    """A value turned to NaN or infinity."""


class DataError(YupanaError):
    """Training data that cannot be used."""


class FileFormatError(YupanaError):
    """A file that is not what its format says."""


class SettingError(YupanaError):
    """A setting outside its range, or settings that contradict each other."""


class Interrupted(YupanaError):
    """A run stopped between two nodes by the caller."""


class MemoryBudgetError(YupanaError):
    """Work that needs more memory than it may take.

    Attributes:
        smallest: bytes of the leanest way found.
    """

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest
