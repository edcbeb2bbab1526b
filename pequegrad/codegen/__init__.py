"""From a Graph to a StepPlan to source text."""
