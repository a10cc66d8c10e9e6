"""Training as in the paper: from the teacher's widths to the student's on a schedule, then at the student's."""
