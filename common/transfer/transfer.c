#include "common/transfer/transfer.h"
