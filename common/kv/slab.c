#include "common/kv/slab.h"
