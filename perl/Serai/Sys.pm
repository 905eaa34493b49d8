package Serai::Sys;

# The system calls that Perl has no word for, by number.
#
# Each returns its result, or dies with a sentence that names the call. A
# string that the kernel writes to by its address must be a buffer of its own:
# Perl shares string buffers on copy.

use v5.36;
use POSIX ();
use Errno qw(EINTR);

my %X86 = (
    recvmsg => 47,  setgroups => 116, setresuid => 117, getresuid => 118,
    setresgid => 119, getresgid => 120, prctl => 157, capset => 126,
    mount => 165, unshare => 272, setns => 308, prlimit => 302,
    memfd_create => 319, signalfd => 289,
);
my %ARM = (
    recvmsg => 212, setgroups => 159, setresuid => 147, getresuid => 148,
    setresgid => 149, getresgid => 150, prctl => 167, capset => 91,
    mount => 40, unshare => 97, setns => 268, prlimit => 261,
    memfd_create => 279, signalfd => 74,
);
my %EVERYWHERE = (close_range => 436, landlock_create_ruleset => 444, landlock_restrict_self => 446);

my $machine = (POSIX::uname())[4];
my %NR = (
    %EVERYWHERE,
      $machine eq 'x86_64'  ? %X86
    : $machine eq 'aarch64' ? %ARM
    : die "Serai knows no system calls of a $machine machine\n",
);

use constant {
    CLONE_NEWNS  => 0x00020000,
    CLONE_NEWIPC => 0x08000000,
    CLONE_NEWUSER => 0x10000000,

    MS_NOSUID  => 2,
    MS_NODEV   => 4,
    MS_REC     => 0x4000,
    MS_PRIVATE => 0x40000,

    RLIMIT_CORE   => 4,
    RLIMIT_NOFILE => 7,
};

# address is where a scalar's bytes are. The scalar must live on unchanged, and
# one that the kernel writes to must share its bytes with no other (unshared).
sub address { return unpack 'J', pack 'P', $_[0] }
sub unshared { substr $_[0], 0, 1, substr $_[0], 0, 1 }

# try calls and returns -1 with $! set where the kernel refuses. Strings are
# passed as they are, not copied: the kernel may write to them.
sub try {
    my $number = $NR{ +shift };
    my $r;
    do { $r = syscall $number, @_ } while $r == -1 && $! == EINTR;
    return $r;
}

# must calls and dies where the kernel refuses.
sub must {
    my $name = $_[0];
    my $r = &try;
    die "$name: $!\n" if $r == -1;
    return $r;
}

# receive takes one packet with its descriptors (close-on-exec) off a socket:
# (packet, descriptor...), or nothing at end of file.
sub receive ($fd, $size = 1024) {
    my ($data, $control) = ("\0" x $size, "\0" x 512);
    unshared($_) for $data, $control;
    my $iov = pack 'JJ', address($data), $size;
    my $head = pack 'JJ JJ JJ J', 0, 0, address($iov), 1, address($control), 512, 0;
    my $n = must('recvmsg', $fd, $head, 0x40000000);    # MSG_CMSG_CLOEXEC
    return if $n == 0;
    my ($used, $flags) = (unpack 'J7', $head)[5, 6];
    my @fds;
    $control = substr $control, 0, $used;
    while (length $control >= 16) {
        my ($len, $level, $type) = unpack 'Jll', $control;
        last if $len < 16;
        push @fds, unpack 'l*', substr $control, 16, $len - 16 if $level == 1 && $type == 1;
        my $step = ($len + 7) & ~7;
        $control = $step < length $control ? substr $control, $step : '';
    }
    if ($flags & (8 | 32)) {    # MSG_CTRUNC, MSG_TRUNC
        POSIX::close($_) for @fds;
        die "recvmsg: a packet that does not fit\n";
    }
    return (substr($data, 0, $n), @fds);
}

sub setns ($fd, $kind) { must('setns', $fd, $kind) }
sub unshare ($flags) { must('unshare', $flags) }
sub mount ($source, $target, $type, $flags, $data = '') { must('mount', "$source", "$target", "$type", $flags, "$data") }
sub close_from ($fd) { must('close_range', $fd, 0x7fffffff, 0) }
sub no_new_privs () { must('prctl', 38, 1, 0, 0, 0) }
sub set_dumpable ($yes) { must('prctl', 4, $yes, 0, 0, 0) }
sub merge () { try('prctl', 67, 1, 0, 0, 0) }    # PR_SET_MEMORY_MERGE
sub small_pages () { must('prctl', 41, 1, 0, 0, 0) }    # PR_SET_THP_DISABLE
sub clear_ambient () { must('prctl', 47, 4, 0, 0, 0) }

sub set_groups (@gids) {
    my $list = @gids ? pack 'L*', @gids : '';
    must('setgroups', scalar @gids, $list);
}
sub set_gid ($gid) { must('setresgid', $gid + 0, $gid + 0, $gid + 0) }
sub set_uid ($uid) { must('setresuid', $uid + 0, $uid + 0, $uid + 0) }

# ids gives the real, effective and saved ids that name (getresuid, getresgid) says.
sub ids ($name) {
    my @out = ("\0" x 4) x 3;
    must($name, @out);
    return map { unpack 'L', $_ } @out;
}

# drop_bounding empties the bounding set: all capabilities this kernel knows.
sub drop_bounding () {
    for my $cap (0 .. 63) {
        last if try('prctl', 23, $cap, 0, 0, 0) == -1;    # PR_CAPBSET_READ: no such one
        must('prctl', 24, $cap, 0, 0, 0);
    }
}

# drop_capabilities empties the permitted, effective and inheritable sets.
sub drop_capabilities () {
    my $head = pack 'LL', 0x20080522, 0;
    my $sets = "\0" x 24;
    must('capset', $head, $sets);
}

sub set_limit ($which, $soft, $hard) {
    my $limit = pack 'QQ', $soft, $hard;
    must('prlimit', 0, $which, $limit, 0);
}

# install_filter installs a seccomp program, an array of struct sock_filter.
sub install_filter ($program) {
    die "seccomp: a program of " . length($program) . " bytes\n" if !length $program || length($program) % 8;
    my $prog = pack 'S x6 J', length($program) / 8, address($program);
    must('prctl', 22, 2, $prog, 0, 0);
}

# scope keeps the process from the abstract sockets and the processes of all
# who are not its descendants, where the kernel's Landlock can (ABI 6).
# It returns false where it cannot.
sub scope () {
    return 0 if try('landlock_create_ruleset', 0, 0, 1) < 6;
    my $attributes = pack 'QQQ', 0, 0, 3;
    my $fd = must('landlock_create_ruleset', $attributes, 24, 0);
    my $r = try('landlock_restrict_self', $fd, 0);
    my $why = $!;
    POSIX::close($fd);
    die "landlock_restrict_self: $why\n" if $r == -1;
    return 1;
}

# signal_fd gives a descriptor (close-on-exec, non-blocking) that is readable
# while the signal, which must be blocked, is pending.
sub signal_fd ($signal) {
    my $set = pack 'Q', 1 << ($signal - 1);
    return must('signalfd', -1, $set, 8, 02004000);
}

# memfd gives the descriptor of a file in memory that holds the bytes; it
# survives exec.
sub memfd ($bytes) {
    my $name = 'serai';
    my $fd = must('memfd_create', $name, 0);
    my $done = 0;
    while ($done < length $bytes) {
        my $n = POSIX::write($fd, substr($bytes, $done), length($bytes) - $done) // die "write: $!\n";
        $done += $n;
    }
    POSIX::lseek($fd, 0, 0);
    return $fd;
}

1;
