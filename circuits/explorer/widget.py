"""The page as a widget for Jupyter: the same scripts, with its state in a traitlet that a notebook keeps."""

from typing import Any

import anywidget
import traitlets

from circuits.circuit.circuit import Circuit
from circuits.explorer.page import WIDGET, code, static
from circuits.explorer.view import circuit_view
from circuits.model.kinds import of_subjects
from circuits.model.subject import Subject
from tasks import Task


class ExplorerWidget(anywidget.AnyWidget):
    """The explorer of one circuit. `state` holds what was chosen, pinned, named, cut and set by hand, as JSON."""

    _esm = code(WIDGET)
    _css = static("style.css")
    view = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)


@of_subjects
def explore(model: Subject, circuit: Circuit, task: Task, **options: Any) -> ExplorerWidget:
    """The explorer of a circuit, to be shown in a notebook; options and errors are those of `circuit_view`.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> widget = circuits.explorer.explore(found.model, found.circuit, found.task, n_prompts=2, n_pairs=8)
        >>> type(widget).__name__
        'ExplorerWidget'
    """
    return ExplorerWidget(view=circuit_view(model, circuit, task, **options))
