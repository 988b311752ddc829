"""A TEST DOUBLE of the parts of LeRobot that lerobot_policy_edgewam touches, with their documented behaviour and nothing else.

The real package pins another torch than edgewam's tests use; tests/integrations/test_lerobot_real.py runs against it.
"""
