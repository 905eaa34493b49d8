# sendmail against a stand-in for the server: recipients, what is added and
# stripped, exit status.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use File::Temp ();
use IO::Socket::UNIX;
use JSON::PP ();
use POSIX ();
use Test::More;
use Serai::Driver;

my $dir = File::Temp::tempdir(CLEANUP => 1);
my $server = IO::Socket::UNIX->new(Local => "$dir/api.sock", Listen => 5) or die;
open my $in, '<', "$Serai::Driver::DIR/sendmail" or die;
my $program = join '', <$in>;
is +(() = $program =~ /__SOCKET__/g), 1, 'one marker';
is +(() = $program =~ /my \$RETRY   = 15;/g), 1, 'one patience';
for (['sendmail', "$dir/api.sock"], ['nobody', "$dir/none.sock"]) {
    my ($name, $socket) = @$_;
    open my $out, '>', "$dir/$name" or die;
    print {$out} $program =~ s/__SOCKET__/$socket/r =~ s/RETRY   = 15/RETRY   = 1/r;
    close $out;
}

my $TAKEN = [200, { id => 'x', answer => '250 ok' }];

# mail runs sendmail with a message; it returns the exit status, what the
# server heard, and standard error. The answers are those of the server, one
# for each connection: status and body; or a sub that is given the connection.
sub mail ($message, $answers, @arguments) {
    my $name = ref $answers ? 'sendmail' : $answers;
    my @answers = ref $answers ? @$answers : ();
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
    my %heard;
    while (waitpid($pid, POSIX::WNOHANG()) == 0) {
        next if !Serai::Driver::readable($server, 0.05);
        my $c = $server->accept;
        my $answer = shift @answers // $TAKEN;
        if (ref $answer eq 'CODE') { $answer->($c); next }
        my ($text, $head, $body) = ('');
        until (($head, $body) = $text =~ /\A(.*?)\r\n\r\n(.*)\z/s and length $body >= ($head =~ /^Content-Length: ([0-9]+)\r?$/m)[0]) {
            sysread $c, $text, 65536, length $text or die 'the request is cut off';
        }
        $heard{request} = $head;
        my ($envelope, $mail) = split /\n/, $body, 2;
        %heard = (%heard, %{ JSON::PP::decode_json($envelope) }, text => $mail);
        print {$c} "HTTP/1.0 $answer->[0] x\r\nContent-Type: application/json\r\n\r\n", JSON::PP::encode_json($answer->[1]), "\n";
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
    like $h->{text}, qr/^To: bob\@x\.example\nSubject: hi\nFrom: alice\@\S+\nDate: \w{3}, \d\d \w{3} \d{4} [\d:]{8} [-+]\d{4}\nMessage-Id: <\S+\@\S+>\n\nbody\n\.dot\n$/, 'headers added, dots kept';
}, mail($plain, [], '-t', '-i');
says 'all recipients, Bcc stripped', sub ($h) {
    is_deeply $h->{to}, ['a@x.example', 'b@x.example', 'c@x.example', 'd@x.example', 'e@x.example'];
    unlike $h->{text}, qr/bcc|\be\@x/i;
    like $h->{text}, qr/^From: me\@x\.example$/m;
    is +(() = $h->{text} =~ /^From:/mg), 1;
}, mail(qq(To: "Last, First" <a\@x.example>,\n\tb\@x.example (a, comment)\nCc: group: c\@x.example, d\@x.example;\nBcc:\n e\@x.example\nFrom: me\@x.example\nDate: x\nMessage-Id: <y>\n\nbody), [], '-t', '-oi');
says 'recipients of the command line', sub ($h) {
    is_deeply $h->{to}, ['a@x.example', 'b@x.example'];
    is $h->{from}, 'me@x.example';
    like $h->{text}, qr/^From: "Me Myself" <me\@x\.example>$/m;
}, mail("Subject: x\n\nbody\n", [], '-i', '-fme@x.example', '-F', 'Me Myself', 'a@x.example', 'b@x.example');
says 'a dot ends', sub ($h) { like $h->{text}, qr/\n\none\n$/ }, mail("Subject: x\n\none\n.\ntwo\n", [], 'a@x.example');
says 'no head', sub ($h) { like $h->{text}, qr/\n\njust text\n$/ }, mail("just text\n", [], 'a@x.example');
says 'CRLF', sub ($h) { like $h->{text}, qr/\nSubject: x\n.*\n\nbody\n$/s; unlike $h->{text}, qr/\r/ }, mail("To: a\@x.example\r\nSubject: x\r\n\r\nbody\r\n", [], '-ti');
says 'empty sender', sub ($h) { is $h->{from}, '' }, mail($plain, [], '-t', '-f', '<>');
says 'the same recipient twice', sub ($h) { is_deeply $h->{to}, ['bob@x.example'] }, mail($plain, [], '-t', 'bob@x.example');

says 'what JSON would take for its own', sub ($h) { is_deeply $h->{to}, ["a\"\\b\@x.example"] }, mail("Subject: x\n\n", [], '--', "a\"\\b\@x.example");
says 'a server that is started anew in the middle', sub ($h) { is_deeply $h->{to}, ['bob@x.example']; is length $h->{text} > 4 << 20, 1 },
    mail($plain . 'x' x (4 << 20) . "\n", [sub ($c) { sysread $c, my $some, 1000; close $c }, $TAKEN], '-t');

my $later = sub ($kind, $message, @hint) { [503, { error => { kind => $kind, message => $message, @hint } }] };
for (['no recipients', 64, qr/no recipients/, "Subject: x\n\n", [], '-t'], ['SMTP mode', 64, qr/-bs is not offered/, '', [], '-bs'], ['queue', 64, qr/-bp is not offered/, '', [], '-bp'],
    ['unknown option', 64, qr/the option -Z/, '', [], '-Z'], ['option without a value', 64, qr/-f needs a value/, '', [], '-f'],
    ['wrong message', 65, qr/^sendmail: line 3 of it\n\z/, $plain, [$later->('invalid', 'line 3 of it')], '-t'],
    ['unknown user', 67, qr/550 no such user/, $plain, [$later->('not found', '550 no such user')], '-t'],
    ['refused', 69, qr/^sendmail: no spam; write less\n\z/, $plain, [$later->(denied => 'no spam', hint => 'write less')], '-t'],
    ['later', 75, qr/100 mails an hour/, $plain, [$later->('unavailable', '100 mails an hour')], '-t'],
    ['server failed inside', 75, qr/internal error/, $plain, [$later->('internal', 'internal error')], '-t'],
    ['nothing that is an answer', 75, qr/whether the message was sent is not known/, $plain, [sub ($c) { 1 while sysread($c, my $some, 65536) == 65536; print {$c} "?\n" }], '-t'],
    ['nobody there', 75, qr/does not answer: try later/, $plain, 'nobody', '-t']) {
    my ($name, $want, $like, $message, @arguments) = @$_;
    my ($status, $heard, $error) = mail($message, @arguments);
    is $status, $want, $name;
    like $error, $like, "$name: says why";
}
done_testing;
