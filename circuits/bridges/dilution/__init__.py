"""Context dilution: where does a dense model lose count of brackets, and does the sparse circuit know beforehand?

A circuit that finds depth by averaging an open-bracket feature over the context has less and less to go on as
lists grow longer and closed lists come before. Its depth margin, the logit of `]]` minus that of `]`, is read
off the sparse circuit alone; the error rate is the dense model's. Nothing here is fitted to the dense model.
"""

from circuits.bridges.dilution.attacks import Attack, attack, mutated, search
from circuits.bridges.dilution.sweep import Cell, Dilution, dilution_sweep

__all__ = ["Attack", "Cell", "Dilution", "attack", "dilution_sweep", "mutated", "search"]
