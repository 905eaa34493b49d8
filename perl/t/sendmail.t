# sendmail against a small SMTP server: recipients, what is added and stripped,
# exit status.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use File::Temp ();
use IO::Socket::INET;
use Test::More;
use Serai::Driver;

my $server = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die;
my $dir = File::Temp::tempdir(CLEANUP => 1);
open my $in, '<', "$Serai::Driver::DIR/sendmail" or die;
my $program = join '', <$in>;
is +(() = $program =~ /__RELAY__/g), 1, 'one marker';
for (['sendmail', '127.0.0.1:' . $server->sockport], ['nobody', '127.0.0.1:1'], ['unset', '']) {
    my ($name, $relay) = @$_;
    open my $out, '>', "$dir/$name" or die;
    print {$out} $program =~ s/__RELAY__/$relay/r;
    close $out;
}

# mail runs sendmail with a message; it returns the exit status, what the
# server heard, and standard error.
sub mail ($message, @arguments) {
    my $name = ref $arguments[0] ? ${ shift @arguments } : 'sendmail';
    open my $stdin, '+>', undef or die;
    print {$stdin} $message;
    seek $stdin, 0, 0;
    open my $stderr, '+>', undef or die;
    my $pid = fork // die;
    if (!$pid) {
        open STDIN, '<&', $stdin;
        open STDERR, '>&', $stderr;
        $ENV{LOGNAME} = 'alice';
        exec $^X, "$dir/$name", @arguments;
    }
    my %heard = (to => []);
    while (waitpid($pid, POSIX::WNOHANG()) == 0) {
        next if !Serai::Driver::readable($server, 0.05);
        my $c = $server->accept;
        print {$c} "220 test\r\n";
        while (my $line = <$c>) {
            if ($line =~ /^MAIL FROM:<(.*?)>/) { $heard{from} = $1 }
            if ($line =~ /^RCPT TO:<(.*?)>/) {
                push @{ $heard{to} }, $1;
                if ($1 =~ /unknown/) { print {$c} "550 no such user\r\n"; next }
                if ($1 =~ /later/) { print {$c} "450 try later\r\n"; next }
            }
            if ($line =~ /^DATA/) {
                print {$c} "354 go\r\n";
                $heard{text} = '';
                while (defined(my $l = <$c>) ) { last if $l eq ".\r\n"; $heard{text} .= $l =~ s/^\.\././r }
            }
            if ($line =~ /^QUIT/) { print {$c} "221 bye\r\n"; last }
            print {$c} "250 ok\r\n";
        }
    }
    my $status = $? >> 8;
    seek $stderr, 0, 0;
    return ($status, \%heard, join '', <$stderr>);
}
sub says ($name, $want, $status, $heard, $error) { is $status, 0, "$name: status" or diag $error; $want->($_) for $heard }

my $plain = "To: bob\@x.example\nSubject: hi\n\nbody\n.dot\n";
says 'plain', sub ($h) {
    is_deeply $h->{to}, ['bob@x.example'];
    like $h->{from}, qr/^alice\@\S+$/, 'the envelope\'s sender is the account';
    like $h->{text}, qr/^To: bob\@x\.example\r\nSubject: hi\r\nFrom: alice\@\S+\r\nDate: \w{3}, \d\d \w{3} \d{4} [\d:]{8} [-+]\d{4}\r\nMessage-Id: <\S+\@\S+>\r\n\r\nbody\r\n\.dot\r\n$/, 'headers added, dots kept';
}, mail($plain, '-t', '-i');
says 'all recipients, Bcc stripped', sub ($h) {
    is_deeply $h->{to}, ['a@x.example', 'b@x.example', 'c@x.example', 'd@x.example', 'e@x.example'];
    unlike $h->{text}, qr/bcc|\be\@x/i;
    like $h->{text}, qr/^From: me\@x\.example\r$/m;
    is +(() = $h->{text} =~ /^From:/mg), 1;
}, mail(qq(To: "Last, First" <a\@x.example>,\n\tb\@x.example (a, comment)\nCc: group: c\@x.example, d\@x.example;\nBcc:\n e\@x.example\nFrom: me\@x.example\nDate: x\nMessage-Id: <y>\n\nbody), '-t', '-oi');
says 'recipients of the command line', sub ($h) {
    is_deeply $h->{to}, ['a@x.example', 'b@x.example'];
    is $h->{from}, 'me@x.example';
    like $h->{text}, qr/^From: "Me Myself" <me\@x\.example>\r$/m;
}, mail("Subject: x\n\nbody\n", '-i', '-fme@x.example', '-F', 'Me Myself', 'a@x.example', 'b@x.example');
says 'a dot ends', sub ($h) { like $h->{text}, qr/\r\none\r\n$/ }, mail("Subject: x\n\none\n.\ntwo\n", 'a@x.example');
says 'no head', sub ($h) { like $h->{text}, qr/\r\n\r\njust text\r\n$/ }, mail("just text\n", 'a@x.example');
says 'CRLF', sub ($h) { like $h->{text}, qr/\nSubject: x\r\n.*\r\n\r\nbody\r\n$/s; unlike $h->{text}, qr/\r\r/ }, mail("To: a\@x.example\r\nSubject: x\r\n\r\nbody\r\n", '-ti');
says 'empty sender', sub ($h) { is $h->{from}, '' }, mail($plain, '-t', '-f', '<>');
says 'the same recipient twice', sub ($h) { is_deeply $h->{to}, ['bob@x.example'] }, mail($plain, '-t', 'bob@x.example');

for (['no recipients', 64, qr/no recipients/, "Subject: x\n\n", '-t'], ['SMTP mode', 64, qr/-bs is not offered/, '', '-bs'], ['queue', 64, qr/-bp is not offered/, '', '-bp'],
    ['unknown option', 64, qr/the option -Z/, '', '-Z'], ['option without a value', 64, qr/-f needs a value/, '', '-f'],
    ['unknown user', 67, qr/the relay refused the recipient unknown\@x\.example: 550 no such user/, "To: unknown\@x.example\n\n", '-t'],
    ['later', 75, qr/450/, "To: later\@x.example\n\n", '-t'], ['nobody there', 75, qr/does not answer/, $plain, \'nobody', '-t'], ['no relay', 69, qr/has set no relay/, $plain, \'unset', '-t']) {
    my ($name, $want, $like, $message, @arguments) = @$_;
    my ($status, $heard, $error) = mail($message, @arguments);
    is $status, $want, $name;
    like $error, $like, "$name: says why";
}
done_testing;
