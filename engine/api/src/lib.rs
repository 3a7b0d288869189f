//! The words between client and cell: commands, answers, refusals, limits, and their encoding.
