"""Help, checks and shell completion of the commands, without torch.

Not here: the options themselves, which are dataclasses of the rooms.
"""
