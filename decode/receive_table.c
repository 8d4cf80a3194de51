#include "decode/receive_table.h"

/* clang-format off */
static const uint8_t table[REQ_N_STATES][HE_N_EVENTS] = {
    /*                 READY      WRITTEN         DONE       STOPPED     REFUSED     VERIFIED  DIFFERS    LOST           UNWANTED */
    [REQ_WAITING]   = {HA_IGNORE, HA_IGNORE,      HA_IGNORE, HA_IGNORE,  HA_IGNORE,  HA_BUG,   HA_BUG,    HA_IGNORE,     HA_FREE},
    [REQ_ASKING]    = {HA_SUBMIT, HA_IGNORE,      HA_IGNORE, HA_IGNORE,  HA_IGNORE,  HA_BUG,   HA_BUG,    HA_NEXT,       HA_FREE},
    [REQ_RECEIVING] = {HA_IGNORE, HA_VERIFY_PART, HA_VERIFY, HA_NEXT,    HA_FAIL,    HA_BUG,   HA_BUG,    HA_REQUEUE,    HA_CANCEL},
    [REQ_VERIFYING] = {HA_IGNORE, HA_IGNORE,      HA_IGNORE, HA_IGNORE,  HA_IGNORE,  HA_RUN,   HA_RESEND, HA_IGNORE,     HA_RELEASE},
    [REQ_RUNNING]   = {HA_IGNORE, HA_IGNORE,      HA_IGNORE, HA_IGNORE,  HA_IGNORE,  HA_BUG,   HA_BUG,    HA_IGNORE,     HA_FREE},
    [REQ_DRAINING]  = {HA_IGNORE, HA_IGNORE,      HA_IGNORE, HA_STOPPED, HA_STOPPED, HA_BUG,   HA_BUG,    HA_QUARANTINE, HA_IGNORE},
    [REQ_DONE]      = {HA_IGNORE, HA_IGNORE,      HA_IGNORE, HA_IGNORE,  HA_IGNORE,  HA_BUG,   HA_BUG,    HA_IGNORE,     HA_IGNORE},
};
/* clang-format on */

enum receive_action receive_action(enum request_state state, enum receive_event event)
{
    return (enum receive_action)table[state][event];
}
