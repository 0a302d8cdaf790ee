// Everything that runs on the device, as one module.
#include "digest.cuh"
#include "move.cuh"
