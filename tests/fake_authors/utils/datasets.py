import numpy as np


class Dataset(dict):
    @classmethod
    def create(cls, **fields):
        return cls(fields)

    def sample(self, size):
        index = np.random.randint(len(self["rewards"]), size=size)
        return {name: values[index] for name, values in self.items()}

    def sample_sequence(self, size, sequence_length, discount):
        assert (sequence_length, discount) == (2, 0.9)
        return self.sample(size)
