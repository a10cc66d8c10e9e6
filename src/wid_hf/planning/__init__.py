"""From a teacher and a `WidConfig` to a `StudentPlan`: sizes, traces, the student's config."""
