"""Named workloads, all ways to run them side by side, and the pages and plots written from the tables."""
