"""Whether the rates are fair: against simulated paths, simulated markets and recorded ones."""
