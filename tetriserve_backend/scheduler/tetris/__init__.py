"""Our own policy: plan all requests on the profile of free ranks over time, run its first pieces, plan anew."""
