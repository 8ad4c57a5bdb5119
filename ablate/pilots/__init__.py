"""Pilots: processes on a cluster that work through the missing runs of a sweep.

An engine (`slurm`, `ray`, `parsl`) only starts pilots and waits until they have ended; which run a
pilot takes next is settled by the leases in the results folder. So nothing is lost with a pilot,
and a sweep needs no scheduler of its own. The results folder is on a file system that all pilots
share, and `ablate` is installed there as it is here.
"""
