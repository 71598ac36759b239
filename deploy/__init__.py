"""Deployment on several machines: Ray Serve, corpus jobs on Ray, and a simulation of load distribution."""
