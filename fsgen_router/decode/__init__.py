"""One request's decode loop, without I/O: :class:`Engine` decides, a driver carries out.

Each act of an answer is a file. They come in this order, and a file imports only from files before it:

==============  ====================================================================================
commands        what an engine asks of its driver, and the events that come back
calls           the contract of what reads tool calls in an answer
request         what is asked: prompts, limits, masks
state           what is known of a request
core            what every act uses: reads, works and their counters
spending        what the slow model costs: decided before it is asked, entered behind it
commit          tokens that cannot be taken back; where an answer ends
escalation      the slow model has the word: a method's rows are gathered, its token stands
drafts          the fast model's tokens that are held back, for a rule to judge or until a word is over
restart         the slow model begins the answer anew
proposal        the fast model proposes, the policy decides
verification    drafts are judged, and taken back
fitting         how much of an endpoint's text is of the form that the answer has to have
continuation    a slow model that gives text goes on
read_ahead      an idle slow model reads while the fast one writes
forced          tokens that a constraint leaves no choice about
review          a whole answer is looked at once more, and handed over where it fails
audit           a finished answer is read back
ending          the record of an answer, and the ledger
failure         a job came to nothing
engine          the loop: what comes of an event, and which model reads next
answers         what is known of whole answers, and the slow model's reading of them
best_of         whole answers of the fast model's, judged before the loop begins
==============  ====================================================================================
"""

from .best_of import BestOfEngine
from .calls import CallEvents, Calls
from .commands import Call, Cancel, Chunk, Close, Command, Done, Emit, Event, Failed, Open, Returned, Start
from .engine import Engine
from .request import Constraint, Request, TextPrompt, Vocabulary, forced_by

__all__ = [
    "BestOfEngine",
    "Call",
    "CallEvents",
    "Calls",
    "Cancel",
    "Chunk",
    "Close",
    "Command",
    "Constraint",
    "Done",
    "Emit",
    "Engine",
    "Event",
    "Failed",
    "Open",
    "Request",
    "Returned",
    "Start",
    "TextPrompt",
    "Vocabulary",
    "forced_by",
]
