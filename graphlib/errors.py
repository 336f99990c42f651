"""Every failure a user can cause, as an exception that says what to do."""


class YupanaError(ValueError):
    """Base of all errors of this library; the message says what, what was wanted, what to do."""


class ShapeError(YupanaError):
    """Shapes, axes or strides that do not fit an operation."""


class PlaceError(ShapeError, IndexError):
    """A number beyond the end of an axis."""


class OperandError(YupanaError, TypeError):
    """An operand, or a use of a tensor, that Python has a sign for and this library does not."""


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
    """A setting outside its range, or settings that contradict each other.

    Attributes:
        setting: name of the one to blame, where it is known.
    """

    def __init__(self, message: str = "", setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


class UnknownSettingError(SettingError, TypeError):
    """A setting that does not exist, passed by name; Python raises TypeError there."""


def require(where: str, name: str, value: object, is_right: bool, rule: str) -> None:
    """Refuse a setting outside its range.

    Raises:
        SettingError: `is_right` is false; names the setting, its value, and the rule.

    >>> require("train", "batch", 0, False, "at least 1")
    Traceback (most recent call last):
    yupana.graphlib.errors.SettingError: train: batch is out of range: got 0, want at least 1.
    """
    if not is_right:
        raise SettingError(f"{where}: {name} is out of range: got {value!r}, want {rule}.")


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
