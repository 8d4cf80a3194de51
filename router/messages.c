#include "router/messages.h"

#include <stdlib.h>

#include "router/intake.h"
#include "router/registry.h"
#include "router/routes.h"

void session_link_free(struct session_link *link)
{
    if (link == NULL)
        return;
    if (link->session != NULL)
        rpc_session_unref(link->session);
    free(link);
}

void router_msg_free(struct msg *m)
{
    if (m->type == RM_TEXT_DONE) {
        intake_drop(m);
        return;
    }
    if (m->type == RM_FLUSHED) {
        api_flush_drop(m);
        return;
    }
    if (m->type == RM_WORKER) {
        struct msg_worker *w = (struct msg_worker *)m;

        registry_unref(w->registry, w->entry);
    }
    if (m->type == RM_SESSION_CLOSED)
        session_link_free(((struct msg_session_closed *)m)->link);
    free(m);
}
