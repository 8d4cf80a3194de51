#include "common/rpc/rpc.h"
