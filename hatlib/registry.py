"""Registries: every kind of part that a package can add under a name, and the plugins that add them.

A registry holds named parts of one kind. Our own parts and those of other packages enter through the same decorators
(`register_model`, `register_head`, `register_attention`, ...). A *spec* asks for a part: a name, `{name: options}`, a
class, or an object. Names and mappings can be written to JSON and YAML, so they can be saved and shared.

Packages announce the modules that register their parts as entry points of the group `hatlib.plugins`. These modules are
imported at the end of `import hatlib`.
"""

import importlib
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import metadata
from typing import Any, Generic, TypeVar

from torch import nn

from hatlib.errors import HatlibError, first_line, similar_names

__all__ = [
    "PLUGIN_GROUP",
    "Registry",
    "attentions",
    "constructor_parameters",
    "discover_plugins",
    "heads",
    "register_attention",
    "register_head",
    "registries",
    "to_tuples",
]

PLUGIN_GROUP = "hatlib.plugins"

T = TypeVar("T")
Part = TypeVar("Part", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Named parts of one kind.

    Args:
        kind: what the parts are, for messages and `hatlib list`, for example 'head'.
        builtin: modules of hatlib that register parts of this kind; imported when a lookup needs them.

    Example:
        >>> losses = Registry("loss")
        >>> @losses.register("absolute")
        ... def absolute(output, target, weight=1.0):
        ...     return weight * abs(output - target)
        >>> losses.names()
        ['absolute']
        >>> losses.get("absolute")(3, 5)
        2.0
    """

    def __init__(self, kind: str, builtin: Sequence[str] = ()):
        self.kind = kind
        self._builtin = builtin
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        """Decorator that registers a class or function under a name.

        Raises:
            HatlibError: if another part already has the name.
        """

        def decorate(part: Part) -> Part:
            self.add(name, part)
            return part

        return decorate

    def add(self, name: str, part: Any, owner: str = "") -> None:
        """Registers a part under a name; see `register`. `owner` is the module that the part comes from."""
        owner = owner or part.__module__
        if name in self._parts and self.owner(name) != owner:
            raise HatlibError(
                f"The {self.kind} {name!r} of {owner} is already registered by {self.owner(name)}; choose another name."
            )
        self._parts[name] = part

    def owner(self, name: str) -> str:
        """Name of the module that registered a part."""
        part = self.get(name)
        return getattr(part, "module", None) or part.__module__

    def names(self) -> list[str]:
        """Names of all parts, in the order of registration."""
        self._import_builtin()
        return list(self._parts)

    def __contains__(self, name: object) -> bool:
        self._import_builtin()
        return name in self._parts

    def get(self, name: str) -> T:
        """Returns the part of this name.

        Raises:
            HatlibError: if there is none; the message lists similar names.
        """
        if name not in self._parts:
            self._import_builtin()
        try:
            return self._parts[name]
        except (KeyError, TypeError) as error:
            hint = similar_names(str(name), self._parts) or f" There are {', '.join(map(repr, self._parts))}."
            raise HatlibError(f"Unknown {self.kind} {name!r}.{hint}") from error

    def resolve(self, spec: Any) -> tuple[Any, dict[str, Any]]:
        """Returns the part that a spec asks for, and its options.

        Args:
            spec: a name, `{name: options}`, or a class or function, which is returned as it is.

        Raises:
            HatlibError: if the spec is of another form, or there is no such part.
        """
        if isinstance(spec, str):
            return self.get(spec), {}
        if isinstance(spec, Mapping):
            if len(spec) != 1 or not isinstance(options := next(iter(spec.values())), (Mapping, type(None))):
                raise HatlibError(f"Write the {self.kind} with options as {{name: {{option: value}}}}, got {spec!r}.")
            return self.get(next(iter(spec))), dict(options or {})
        if callable(spec):
            return spec, {}
        raise HatlibError(f"Give the {self.kind} as a name, {{name: options}}, a class or an object, got {spec!r}.")

    def create(self, spec: Any, **context: Any) -> Any:
        """Builds the part that a spec asks for: `part(**context, **options)`. An `nn.Module` is returned as it is.

        Raises:
            HatlibError: if there is no such part, or it does not take an option.
        """
        if isinstance(spec, nn.Module):
            return spec
        part, options = self.resolve(spec)
        if options:
            check_options(part, options, f"The {self.kind} {next(iter(spec))!r}", reserved=context)
        return part(**context, **options)

    def name_of(self, part: Any) -> str | None:
        """The name under which a part is registered, or None."""
        return next((name for name, known in self._parts.items() if known is part), None)

    def _import_builtin(self) -> None:
        for module in self._builtin:
            importlib.import_module(module)


def constructor_parameters(part: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters that a class or function accepts by name, including those that `**kwargs` passes to base classes."""
    return _parameters(part)[0]


def _parameters(part: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Parameters by name, and whether any other name is accepted too."""
    if not inspect.isclass(part):
        constructors, skip = [part], 0
    else:
        constructors, skip = [base.__init__ for base in inspect.getmro(part) if "__init__" in base.__dict__], 1
    found: dict[str, inspect.Parameter] = {}
    for constructor in constructors:
        parameters = list(inspect.signature(constructor).parameters.values())[skip:]
        variadic = [p for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        found = {**{p.name: p for p in parameters if p not in variadic}, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in variadic):
            return found, False
    return found, True


def to_tuples(value: Any) -> Any:
    """Converts lists, such as JSON returns, to tuples, also inside tuples."""
    return tuple(map(to_tuples, value)) if isinstance(value, (list, tuple)) else value


def check_options(
    part: Callable[..., Any], options: Mapping[str, Any], what: str, reserved: Collection[str] = ()
) -> None:
    """Refuses options that a class or function does not take, or that the caller passes itself (`reserved`).

    Raises:
        HatlibError: naming the option and similar ones.
    """
    parameters, accepts_any = _parameters(part)
    for option in options:
        if option in reserved:
            raise HatlibError(f"{what} gets {option!r} from the network; leave it out of the options.")
        if not isinstance(option, str) or not (accepts_any or option in parameters):
            raise HatlibError(f"{what} has no option {option!r}.{similar_names(str(option), parameters)}")


heads: Registry[type[nn.Module]] = Registry("head", ["hatlib.blocks.heads"])
attentions: Registry[type[nn.Module]] = Registry("attention", ["hatlib.blocks.attention"])
registries: dict[str, Registry[Any]] = {registry.kind: registry for registry in (heads, attentions)}


def register_head(name: str) -> Callable[[Part], Part]:
    """Registers a subclass of `hatlib.blocks.Head` under the name that `upsampler=` takes."""
    return heads.register(name)


def register_attention(name: str) -> Callable[[Part], Part]:
    """Registers an attention under the name that `attn_layer=` takes.

    The part is called with `dim=, num_heads=, window_size=, shift_size=` and the options of the spec. The module maps
    (B, H, W, C) to the same shape; H and W are multiples of the window.
    """
    return attentions.register(name)


def discover_plugins() -> None:
    """Imports the modules that installed packages announce in the entry-point group `hatlib.plugins`.

    A module that fails to import warns and leaves everything else usable.
    """
    for plugin in metadata.entry_points(group=PLUGIN_GROUP):
        try:
            plugin.load()
        except Exception as error:  # a plugin may raise anything
            warnings.warn(
                f"The hatlib plugin {plugin.value!r} could not be imported: {first_line(error)}.", stacklevel=3
            )
