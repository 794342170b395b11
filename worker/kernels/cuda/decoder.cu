// All kernels of a rank. `build_ptx.py` compiles this once for each element type; PTX is what is committed and embedded.

#include "device.h"
#include "arguments.h"
#include "tiles.h"
#include "rows.h"
#include "stream.h"
#include "cache.h"
#include "attention.h"
#include "project.h"
#include "answer.h"
