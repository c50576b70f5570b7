"""Transformer Programs: networks of discrete variables that are trained like any other and read like Python."""

from instar.lab.programs.discretise import discretise
from instar.lab.programs.network import ProgramNetwork, Shape
from instar.lab.programs.printing import python
from instar.lab.programs.program import Program
from instar.lab.programs.tasks import TASKS, generate
from instar.lab.programs.transformer_programs import TransformerPrograms

__all__ = ["TASKS", "Program", "ProgramNetwork", "Shape", "TransformerPrograms", "discretise", "generate", "python"]
