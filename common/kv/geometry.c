#include "common/kv/geometry.h"
