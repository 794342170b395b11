// All kernels of a rank. `build_ptx.py` compiles this once for each element type; PTX is what is committed and embedded.

#include "device.h"
#include "arguments.h"
#include "rows.h"
#include "attention.h"
#include "answer.h"
