from nullsmtpd.check.domain import DomainReport as DomainReport
from nullsmtpd.check.domain import HostReport as HostReport
from nullsmtpd.check.domain import check_domain as check_domain
from nullsmtpd.check.probe import Probe as Probe
from nullsmtpd.check.probe import check_host as check_host
from nullsmtpd.check.probe import probe as probe
from nullsmtpd.check.published import Finding as Finding
from nullsmtpd.check.verdicts import Verdict as Verdict
from nullsmtpd.nullmx import MX as MX
from nullsmtpd.nullmx import DNSError as DNSError
from nullsmtpd.nullmx import DomainError as DomainError
from nullsmtpd.nullmx import MXAnswer as MXAnswer
from nullsmtpd.nullmx import accepts_mail as accepts_mail
from nullsmtpd.nullmx import look_up_mx as look_up_mx
from nullsmtpd.responder.dialogues import mail_dialogue as mail_dialogue
from nullsmtpd.responder.dialogues import session_dialogue as session_dialogue
from nullsmtpd.responder.drain import DrainProtocol as DrainProtocol
from nullsmtpd.responder.replies import REPLY as REPLY
from nullsmtpd.responder.replies import reply_line as reply_line
from nullsmtpd.responder.session import SessionProtocol as SessionProtocol

__version__: str
