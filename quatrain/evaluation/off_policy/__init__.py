"""What is a policy worth, judged from another policy's trajectories? Pure functions of tensors.

N logged trajectories, T actions. An estimator answers each trajectory's contribution [N]; the estimate is their mean, so that every
interval applies to every estimator.
"""
